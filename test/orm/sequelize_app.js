// An application with Sequelize that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { DataTypes, Sequelize } = require('sequelize');
const [host, port, role, appId, ...ids] = process.argv.slice(2);

const sequelize = new Sequelize('postgres', role, '', { host, port: Number(port), dialect: 'postgres', logging: false });
const Message = sequelize.define('message', {
  message_id: { type: DataTypes.UUID, primaryKey: true },
  app_id: { type: DataTypes.UUID, primaryKey: true },
  send_after: DataTypes.DATE,
  cancel: { type: DataTypes.BOOLEAN, allowNull: false, defaultValue: false },
  reason: DataTypes.TEXT,
  state: { type: DataTypes.TEXT, defaultValue: 'scheduled' },
  http_status: DataTypes.INTEGER,
  errors: DataTypes.ARRAY(DataTypes.TEXT),
  response: DataTypes.JSONB,
  attempts: { type: DataTypes.INTEGER, defaultValue: 0 },
  unanswered: { type: DataTypes.BOOLEAN, defaultValue: false },
  requested_by: DataTypes.TEXT,
  requested_at: DataTypes.DATE,
  first_attempt_at: DataTypes.DATE,
  last_attempt_at: DataTypes.DATE,
  next_attempt_at: DataTypes.DATE,
  finished_at: DataTypes.DATE,
  created_at: { type: DataTypes.DATE, defaultValue: DataTypes.NOW },
}, { tableName: 'onesignal_message', timestamps: false });

const keys = ['message_id', 'app_id'];
const fields = Object.keys(Message.getAttributes()).filter((name) => !keys.includes(name));
const read = () => Message.findAll({ where: { message_id: ids }, order: ['message_id'] });

// Each way to save a whole row.
async function saveAll(copies, reason) {
  for (const [number, copy] of copies.entries()) {
    const row = { ...copy.get({ plain: true }), reason };
    if (number % 4 === 0) {
      const message = Message.build(row, { isNewRecord: false });
      fields.forEach((name) => message.changed(name, true));
      await message.save({ fields });
    } else if (number % 4 === 1) {
      await Message.upsert(row);
    } else if (number % 4 === 2) {
      await Message.bulkCreate([row], { updateOnDuplicate: fields });
    } else {
      await Message.update(row, { where: { message_id: row.message_id }, fields });
    }
  }
}

const line = () => new Promise((resolve) => process.stdin.once('data', resolve));

async function main() {
  for (const id of ids) await Message.create({ message_id: id, app_id: appId });
  const scheduled = await read();
  for (const message of await read()) await message.set('cancel', true).save();
  const pending = await read();
  if (!pending.every((m) => m.state === 'pending' && m.requested_by === role)) throw new Error('not all are pending');
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
