// The page at /docs in a real browser: each operation is there, the console is empty, and nothing comes from another host.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { chromium } from 'playwright-core'

const { GATEWAY } = process.env
// Milliseconds for each wait: bounds what never comes, on the slowest machine.
const MOST = 120_000

test('the page renders every operation and asks nobody else', async () => {
  const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'], timeout: MOST })
  try {
    const page = await browser.newPage({ viewport: { width: 1200, height: 1600 } })
    page.setDefaultTimeout(MOST)
    const said = []
    const foreign = []
    page.on('console', (message) => said.push(message.text()))
    page.on('pageerror', (error) => said.push(String(error)))
    page.on('request', (request) => {
      const url = new URL(request.url())
      if (url.protocol !== 'data:' && url.origin !== GATEWAY) foreign.push(request.url())
    })
    const answer = await page.goto(`${GATEWAY}/docs`)
    assert.equal(answer.status(), 200)
    const description = await (await fetch(`${GATEWAY}/openapi.json`)).json()
    const paths = Object.entries(description.paths)
    const last = paths.flatMap(([, operations]) => Object.values(operations)).length - 1
    // The page asks for the description and draws it long after it is loaded. A quiet network says nothing: it is as quiet while a
    // slow browser works.
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
    assert.deepEqual(said, [])
    assert.deepEqual(foreign, [])
  } finally {
    await browser.close()
  }
})
