// npm's braze-api, unchanged, against the gateway: successful calls, and errors as its users see them.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Braze } from 'braze-api'

const { GATEWAY, KEY } = process.env
const CANVAS = '11ae5b4f-2445-4440-a04f-bf537764c9ad'
const inDays = (days) => new Date(Date.now() + days * 86_400_000).toISOString()
const creation = (canvas) => ({
  canvas_id: canvas,
  recipients: [{ external_user_id: 'user-1' }],
  schedule: { time: inDays(3), in_local_time: false, at_optimal_time: false },
})

for (const [name, url] of [['as it is', GATEWAY], ['ending in a slash', `${GATEWAY}/`]]) {
  const { schedule } = new Braze(url, KEY).canvas.trigger

  test(`create, update and delete, the base URL ${name}`, async () => {
    const canvas_id = `${CANVAS}-${name.length}`
    const created = await schedule.create(creation(canvas_id))
    assert.equal(created.message, 'success')
    assert.match(created.dispatch_id, /^[0-9a-f]{32}$/)
    assert.match(created.schedule_id, /^[0-9a-f-]{36}$/)
    const ids = { canvas_id, schedule_id: created.schedule_id }

    const time = inDays(5)
    const updated = await schedule.update({ ...ids, schedule: { time, in_local_time: true, at_optimal_time: false } })
    assert.equal(updated.message, 'success')
    assert.equal(updated.errors, undefined)
    assert.equal(updated.revision, 2)
    assert.equal(updated.applied, 'all')
    assert.equal(updated.schedule.in_local_time, true)

    const deleted = await schedule.delete(ids)
    assert.equal(deleted.message, 'success')
    assert.equal(deleted.errors, undefined)
  })
}

const expectRejection = async (call, status, message) => {
  await assert.rejects(call, (error) => {
    assert.equal(error.status, status)
    assert.match(error.message, message)
    return true
  })
}
const { schedule } = new Braze(GATEWAY, KEY).canvas.trigger

test('a wrong key', () => {
  const wrong = new Braze(GATEWAY, `${KEY.slice(0, -4)}AAAA`).canvas.trigger.schedule
  return expectRejection(wrong.create(creation(CANVAS)), 401, /key/)
})

test('an invalid time', async () => {
  const { schedule_id } = await schedule.create(creation('bad-time'))
  const change = { canvas_id: 'bad-time', schedule_id, schedule: { time: 'tomorrow at noon' } }
  await expectRejection(schedule.update(change), 400, /schedule\.time.*tomorrow at noon/)
})

test('an unknown schedule', () => {
  const change = { canvas_id: CANVAS, schedule_id: '01900000-0000-7000-8000-000000000000', schedule: { time: inDays(1) } }
  return expectRejection(schedule.update(change), 404, /01900000-0000-7000-8000-000000000000/)
})
