// An application with Prisma that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { Prisma, PrismaClient } = require('@prisma/client');
const { PrismaPg } = require('@prisma/adapter-pg');
const [host, port, role, appId, ...ids] = process.argv.slice(2);

const prisma = new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), user: role, database: 'postgres' }) });
const messages = prisma.message;
const read = () => messages.findMany({ where: { message_id: { in: ids } }, orderBy: { message_id: 'asc' } });

// Each way to save a whole row.
async function saveAll(copies, reason) {
  for (const [number, copy] of copies.entries()) {
    const row = { ...copy, response: copy.response ?? Prisma.DbNull, reason };
    const { message_id, app_id, ...values } = row;
    const where = { message_id_app_id: { message_id, app_id } };
    if (number % 4 === 0) await messages.update({ where, data: row });
    else if (number % 4 === 1) await messages.upsert({ where, create: row, update: row });
    else if (number % 4 === 2) await messages.updateMany({ where: { message_id }, data: values });
    else await prisma.$transaction([messages.update({ where, data: values })]);
  }
}

const line = () => new Promise((resolve) => process.stdin.once('data', resolve));

async function main() {
  await messages.createMany({ data: ids.map((id) => ({ message_id: id, app_id: appId })) });
  const scheduled = await read();
  for (const { message_id, app_id } of scheduled)
    await messages.update({ where: { message_id_app_id: { message_id, app_id } }, data: { cancel: true } });
  const pending = await read();
  if (!pending.every((m) => m.state === 'pending')) throw new Error('not all are pending');
  await saveAll(pending, 'read while pending');
  await saveAll(scheduled, 'read before');
  console.log('pending');

  await line();
  for (const copies of [scheduled, pending, await read()])
    // once with each way
    for (let turn = 0; turn < 4; turn++) await saveAll([...copies.slice(turn), ...copies.slice(0, turn)], 'saved');
  process.exit(0);
}

main().catch((error) => { console.error(error); process.exit(1); });
