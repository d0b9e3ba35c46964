"""A Django application that saves whole rows of onesignal_message: see ORM.pm."""
import sys

import django
from django.conf import settings

host, port, role, app_id, *ids = sys.argv[1:]
settings.configure(
    DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql', 'HOST': host, 'PORT': port,
                           'USER': role, 'NAME': 'postgres'}},
    DEFAULT_AUTO_FIELD='django.db.models.AutoField', USE_TZ=True)
django.setup()

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.utils import timezone


class StateField(models.TextField):
    def db_type(self, connection):
        return 'onesignal_message_state'


class Message(models.Model):
    message_id = models.UUIDField(primary_key=True)
    app_id = models.UUIDField()
    send_after = models.DateTimeField(null=True)
    cancel = models.BooleanField(default=False)
    reason = models.TextField(null=True)
    state = StateField(default='scheduled')
    http_status = models.IntegerField(null=True)
    errors = ArrayField(models.TextField(), null=True)
    response = models.JSONField(null=True)
    attempts = models.IntegerField(default=0)
    unanswered = models.BooleanField(default=False)
    requested_by = models.TextField(null=True)
    requested_at = models.DateTimeField(null=True)
    first_attempt_at = models.DateTimeField(null=True)
    last_attempt_at = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        app_label = 'clinic'
        managed = False
        db_table = 'onesignal_message'


FIELDS = [f.name for f in Message._meta.fields if not f.primary_key]


def copied(message):
    values = {f.attname: getattr(message, f.attname) for f in Message._meta.fields}
    return Message.from_db('default', list(values), list(values.values()))


def save_all(copies, reason):
    """Each way to save a whole row."""
    for number, message in enumerate(map(copied, copies)):
        message.reason = reason
        values = {name: getattr(message, name) for name in FIELDS}
        if number % 4 == 0:
            message.save()
        elif number % 4 == 1:
            Message.objects.update_or_create(message_id=message.message_id, defaults=values)
        elif number % 4 == 2:
            Message.objects.bulk_update([message], FIELDS)
        else:
            Message.objects.filter(pk=message.pk).update(**values)


for message_id in ids:
    Message(message_id=message_id, app_id=app_id).save(force_insert=True)
scheduled = list(Message.objects.filter(pk__in=ids).order_by('pk'))
for message in map(copied, scheduled):
    message.cancel = True
    message.save()
pending = list(Message.objects.filter(pk__in=ids).order_by('pk'))
assert all(m.state == 'pending' and m.requested_by == role for m in pending)
save_all(pending, 'read while pending')
save_all(scheduled, 'read before')
print('pending', flush=True)

sys.stdin.readline()
for copies in scheduled, pending, list(Message.objects.filter(pk__in=ids).order_by('pk')):
    # once with each way
    for turn in range(4):
        save_all(copies[turn:] + copies[:turn], 'saved')
