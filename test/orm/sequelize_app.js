// An application with Sequelize that saves whole rows of onesignal_message: see ORM.pm.
'use strict';

const { DataTypes, Sequelize } = require('sequelize');
const { tell } = require('./story.js');
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
const row = (copy, reason) => ({ ...copy.get({ plain: true }), reason });

tell({
  insert: async () => { for (const id of ids) await Message.create({ message_id: id, app_id: appId }); },
  read: () => Message.findAll({ where: { message_id: ids }, order: ['message_id'] }),
  request: async (copies) => { for (const copy of copies) await copy.set('cancel', true).save(); },
  isRequested: (copy) => copy.state === 'pending' && copy.requested_by === role,
  ways: [
    (copy, reason) => {
      const message = Message.build(row(copy, reason), { isNewRecord: false });
      fields.forEach((name) => message.changed(name, true));
      return message.save({ fields });
    },
    (copy, reason) => Message.upsert(row(copy, reason)),
    (copy, reason) => Message.bulkCreate([row(copy, reason)], { updateOnDuplicate: fields }),
    (copy, reason) => Message.update(row(copy, reason), { where: { message_id: copy.message_id }, fields }),
  ],
});
