// The page at /docs in a real browser: it shows each operation, logs nothing to the console, and loads nothing from another host.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { chromium } from 'playwright-core'

const { GATEWAY } = process.env
// Milliseconds for each wait, long enough for the slowest machine.
const TIMEOUT = 120_000

test('the page renders every operation and requests nothing from another host', async () => {
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'], timeout: TIMEOUT })
  try {
    const page = await browser.newPage({ viewport: { width: 1200, height: 1600 } })
    page.setDefaultTimeout(TIMEOUT)
    const messages = []
    const foreign = []
    page.on('console', (message) => messages.push(message.text()))
    page.on('pageerror', (error) => messages.push(String(error)))
    page.on('request', (request) => {
      const url = new URL(request.url())
      if (url.protocol !== 'data:' && url.origin !== GATEWAY) foreign.push(request.url())
    })
    const response = await page.goto(`${GATEWAY}/docs`)
    assert.equal(response.status(), 200)
    const description = await (await fetch(`${GATEWAY}/openapi.json`)).json()
    const paths = Object.entries(description.paths)
    const last = paths.flatMap(([, operations]) => Object.values(operations)).length - 1
    // The page fetches the description and renders it long after the load event. An idle network does not prove that it has finished,
    // since a slow browser renders without requests.
    await page.locator('.opblock').nth(last).waitFor()
    await page.waitForLoadState('networkidle')
    const shown = await page.locator('body').innerText()
    for (const [path, operations] of paths) {
      assert.ok(shown.replaceAll('\u200b', '').includes(path), `${path} is not on the page`)
      for (const operation of Object.values(operations)) {
        assert.ok(!operation.summary || shown.includes(operation.summary), `${operation.summary} is not on the page`)
      }
    }
    if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT })
    assert.deepEqual(messages, [])
    assert.deepEqual(foreign, [])
  } finally {
    await browser.close()
  }
})
