// An application with TypeORM that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { DataSource, EntitySchema, In } = require('typeorm');
const { tell } = require('./story.js');
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
let messages;

tell({
  insert: async () => {
    messages = (await source.initialize()).getRepository('Message');
    await messages.save(ids.map((id) => messages.create({ message_id: id, app_id: appId })));
  },
  read: () => messages.find({ where: { message_id: In(ids) }, order: { message_id: 'ASC' } }),
  request: (copies) => messages.save(copies.map((copy) => Object.assign(copy, { cancel: true }))),
  isRequested: (copy) => copy.state === 'pending' && copy.requested_by === role,
  // save() writes what differs from the row as it is now.
  ways: [
    (copy, reason) => messages.save(messages.create({ ...copy, reason })),
    (copy, reason) => messages.upsert({ ...copy, reason }, ['message_id', 'app_id']),
    ({ message_id, app_id, ...values }, reason) => messages.update({ message_id, app_id }, { ...values, reason }),
  ],
});
