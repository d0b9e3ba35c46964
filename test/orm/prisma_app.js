// An application with Prisma that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { Prisma, PrismaClient } = require('@prisma/client');
const { PrismaPg } = require('@prisma/adapter-pg');
const { tell } = require('./story.js');
const [host, port, role, appId, ...ids] = process.argv.slice(2);

const prisma = new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), user: role, database: 'postgres' }) });
const messages = prisma.message;
const key = ({ message_id, app_id }) => ({ message_id_app_id: { message_id, app_id } });
const row = (copy, reason) => ({ ...copy, response: copy.response ?? Prisma.DbNull, reason });
// Without the key.
function values(copy, reason) {
  const { message_id, app_id, ...others } = row(copy, reason);
  return others;
}

tell({
  insert: () => messages.createMany({ data: ids.map((id) => ({ message_id: id, app_id: appId })) }),
  read: () => messages.findMany({ where: { message_id: { in: ids } }, orderBy: { message_id: 'asc' } }),
  request: async (copies) => { for (const copy of copies) await messages.update({ where: key(copy), data: { cancel: true } }); },
  isRequested: (copy) => copy.state === 'pending',
  ways: [
    (copy, reason) => messages.update({ where: key(copy), data: row(copy, reason) }),
    (copy, reason) => messages.upsert({ where: key(copy), create: row(copy, reason), update: row(copy, reason) }),
    (copy, reason) => messages.updateMany({ where: { message_id: copy.message_id }, data: values(copy, reason) }),
    (copy, reason) => prisma.$transaction([messages.update({ where: key(copy), data: values(copy, reason) })]),
  ],
});
