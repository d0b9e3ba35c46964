// An application with TypeORM that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { DataSource, EntitySchema, In } = require('typeorm');
const [host, port, role, appId, ...ids] = process.argv.slice(2);

const nullable = (type, more) => ({ type, nullable: true, ...more });
const Message = new EntitySchema({
  name: 'Message',
  tableName: 'onesignal_message',
  synchronize: false,
  columns: {
    message_id: { type: 'uuid', primary: true },
    app_id: { type: 'uuid', primary: true },
    send_after: nullable('timestamptz'),
    cancel: { type: 'boolean', default: false },
    reason: nullable('text'),
    state: { type: 'enum', enum: ['scheduled', 'pending', 'canceled', 'refused', 'failed'], enumName: 'onesignal_message_state', default: 'scheduled' },
    http_status: nullable('integer'),
    errors: nullable('text', { array: true }),
    response: nullable('jsonb'),
    attempts: { type: 'integer', default: 0 },
    unanswered: { type: 'boolean', default: false },
    requested_by: nullable('text'),
    requested_at: nullable('timestamptz'),
    first_attempt_at: nullable('timestamptz'),
    last_attempt_at: nullable('timestamptz'),
    next_attempt_at: nullable('timestamptz'),
    finished_at: nullable('timestamptz'),
    created_at: { type: 'timestamptz', default: () => 'now()' },
  },
});
const source = new DataSource({ type: 'postgres', host, port: Number(port), username: role, database: 'postgres', entities: [Message], installExtensions: false });
const line = () => new Promise((resolve) => process.stdin.once('data', resolve));

async function main() {
  const messages = (await source.initialize()).getRepository('Message');
  const read = () => messages.find({ where: { message_id: In(ids) }, order: { message_id: 'ASC' } });

  // Each way to save a whole row: save() writes what differs from the row as it is now.
  async function saveAll(copies, reason) {
    for (const [number, copy] of copies.entries()) {
      const row = { ...copy, reason };
      const { message_id, app_id, ...values } = row;
      if (number % 3 === 0) await messages.save(messages.create(row));
      else if (number % 3 === 1) await messages.upsert(row, ['message_id', 'app_id']);
      else await messages.update({ message_id, app_id }, values);
    }
  }

  await messages.save(ids.map((id) => messages.create({ message_id: id, app_id: appId })));
  const scheduled = await read();
  await messages.save((await read()).map((message) => Object.assign(message, { cancel: true })));
  const pending = await read();
  if (!pending.every((m) => m.state === 'pending' && m.requested_by === role)) throw new Error('not all are pending');
  await saveAll(pending, 'read while pending');
  await saveAll(scheduled, 'read before');
  console.log('pending');

  await line();
  for (const copies of [scheduled, pending, await read()])
    // once with each way
    for (let turn = 0; turn < 3; turn++) await saveAll([...copies.slice(turn), ...copies.slice(0, turn)], 'saved');
  process.exit(0);
}

main().catch((error) => { console.error(error); process.exit(1); });
