// What the programs in JavaScript do with whole rows: see ORM.pm.
//
//   tell({ insert, read, request, isRequested, ways })
//
// insert(): makes the messages. read(): new copies of all of them, in one order. request(copies): sets cancel.
// isRequested(copy). ways: functions of (copy, reason), each of which saves a whole row in another way.
'use strict';

const line = () => new Promise((resolve) => process.stdin.once('data', resolve));

async function run({ insert, read, request, isRequested, ways }) {
  // Each with the next way.
  async function saveAll(copies, reason) {
    for (const [number, copy] of copies.entries()) await ways[number % ways.length](copy, reason);
  }

  await insert();
  const scheduled = await read();
  await request(await read());
  const pending = await read();
  if (!pending.every(isRequested)) throw new Error('not all are pending');
  await saveAll(pending, 'read while pending');
  await saveAll(scheduled, 'read before');
  console.log('pending');

  await line();
  for (const copies of [scheduled, pending, await read()])
    // once with each way
    for (let turn = 0; turn < ways.length; turn++) await saveAll([...copies.slice(turn), ...copies.slice(0, turn)], 'saved');
  process.exit(0);
}

exports.tell = (mapper) => run(mapper).catch((error) => { console.error(error); process.exit(1); });
