# An application with Active Record that saves whole rows of onesignal_message: see ORM.pm.
require 'active_record'

host, port, role, app_id, *ids = ARGV
ActiveRecord::Base.establish_connection(adapter: 'postgresql', host: host, port: port, username: role, database: 'postgres',
                                        min_messages: 'notice')
# As it is, Rails saves what changed. This makes save write all columns.
WHOLE_ROWS = ActiveRecord::Base.respond_to?(:partial_updates=) ? :partial_updates= : :partial_writes=

class OnesignalMessage < ActiveRecord::Base
  self.table_name = 'onesignal_message'
  self.primary_key = ActiveRecord.version >= Gem::Version.new('7.1') ? [:message_id, :app_id] : :message_id
  self.ignored_columns = %w[errors response]
end

def read(ids)
  OnesignalMessage.where(message_id: ids).order(:message_id).to_a
end

def copied(message)
  OnesignalMessage.instantiate(message.attributes_before_type_cast)
end

# Each way to save a whole row, and the usual one.
def save_all(copies, reason)
  copies.map { |message| copied(message) }.each_with_index do |message, number|
    message.reason = reason
    OnesignalMessage.public_send(WHOLE_ROWS, number % 4 != 3)
    case number % 4
    when 0, 3 then message.save!
    when 1 then OnesignalMessage.upsert(message.attributes, unique_by: [:message_id, :app_id])
    when 2 then OnesignalMessage.where(message_id: message.message_id).update_all(message.attributes.except('message_id', 'app_id'))
    end
  end
end

ids.each { |id| OnesignalMessage.create!(message_id: id, app_id: app_id) }
scheduled = read(ids)
read(ids).each { |message| message.update!(cancel: true) }
pending = read(ids)
raise 'not all are pending' unless pending.all? { |m| m.state == 'pending' && m.requested_by == role }
save_all(pending, 'read while pending')
save_all(scheduled, 'read before')
puts 'pending'
$stdout.flush

$stdin.gets
[scheduled, pending, read(ids)].each do |copies|
  # once with each way
  4.times { |turn| save_all(copies.rotate(turn), 'saved') }
end
