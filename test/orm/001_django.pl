# Django's save(), update_or_create() and bulk_update() lose nothing and send nothing twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;

# Debian's own Python, which has Debian's modules.
ORM::run('Django', '/usr/bin/python3', "$FindBin::RealBin/django_app.py");
