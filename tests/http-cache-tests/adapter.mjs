// On both sides of a cache under test, so that the package's client and origin, which use
// /test/UUID, meet it as a client and the API would:
//
//   client -> front -> cache -> back -> origin
//
// Mapped for every cache, and back again: /test/UUID... is /customer/ID/name with an ID derived
// from it (a query or a file name is part of the input), and the caller is a bearer token (a test's
// own `Authorization` is another caller's). All other fields of a test reach the cache, and all
// fields of the cache reach the origin, with one exception: the front passes the fields by which
// client and origin number their requests, since a cache may remove them.
//
// The gateway stores JSON objects only and sends only its own fields, so for it (`wraps`) the
// origin's response is a JSON object in the body of a response with the same status and fields, and
// the front makes from it what the client sees:
//   - the origin's body,
//   - of the origin's fields those in CARRIED, which the client needs to check that nothing was lost,
//   - the gateway's `Age`, `Date` and `Content-Type`, and the fields that it is configured to keep (KEPT).
//     Every other field of the origin is lost, as it is for clients,
//   - entity tags: the gateway's are of the bytes that it sends, so each replaces the origin's within the
//     same response, in both directions.
// For another cache, requests and responses pass unchanged.

import { createHash } from 'node:crypto'
import http from 'node:http'

import { KEPT } from './caches.mjs'

// Numbers by which the package's origin reports, the header that its templates use as a mark, and
// the fields that control caching, which the gateway reads and replaces by its own.
const CARRIED = new Set([
  'server-base-url',
  'server-request-count',
  'client-request-count',
  'server-now',
  'capability-seen',
  'request-numbers',
  'template-a',
  'cache-control',
  'content-disposition',
  'etag',
  'expires',
  'last-modified',
  'location',
  'pragma',
  'surrogate-control',
  'vary',
])
const OWN = new Set(['age', 'date', 'content-type', ...KEPT.map(name => name.toLowerCase())])
const NUMBERS = ['req-num', 'test-id', 'test-name']

// The package's status for "this should have been a conditional request". It is not a status of
// HTTP; it is passed as 400.
const NOT_CONDITIONAL = 999

// Milliseconds for one exchange; longer than the gateway's timeouts, so that its errors are seen.
const PATIENCE = 30_000

/** Returns `length` characters of a hexadecimal digest. */
const digest = (text, length) => createHash('sha256').update(text).digest('hex').slice(0, length)

/** Returns the `[name, value]` pairs of node's flat list. */
const pairs = raw => raw.flatMap((name, i) => (i % 2 ? [] : [[name, raw[i + 1]]]))
const first = (fields, wanted) => fields.find(([name]) => name.toLowerCase() === wanted)?.[1]
const without = (fields, ...names) => fields.filter(([name]) => !names.includes(name.toLowerCase()))

async function read(message) {
  const chunks = []
  for await (const chunk of message) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** Makes one exchange on a new connection. */
function ask(port, { method, target, fields, body }) {
  return new Promise((resolve, reject) => {
    let given
    const framed = [['Host', `127.0.0.1:${port}`], ...fields, ['Connection', 'close']]
    if (body.length > 0) framed.push(['Content-Length', String(body.length)])
    const options = {
      port,
      host: '127.0.0.1',
      method,
      path: target,
      headers: framed.flat(),
      agent: false,
      timeout: PATIENCE,
    }
    const request = http.request(options, async answer => {
      given = answer
      try {
        const body = await read(answer)
        resolve({
          status: answer.statusCode,
          reason: answer.statusMessage,
          fields: pairs(answer.rawHeaders),
          body,
        })
      } catch (error) {
        reject(error)
      }
    })
    request.on('timeout', () => request.destroy(new Error('timeout')))
    // Bytes behind a complete response on a closing connection are ignored: some tests announce
    // less than they send.
    request.on('error', error => given?.complete || reject(error))
    request.end(body)
  })
}

function send(response, { status, reason, fields, body }) {
  response.sendDate = false
  response.writeHead(status, reason, fields.flat())
  response.end(body)
}

/** A server that closes the connection if its handler fails, like a broken response. */
async function serve(handler) {
  const server = http.createServer((request, response) => {
    handler(request, response).catch(() => response.socket?.destroy())
  })
  await new Promise((resolve, reject) =>
    server.once('error', reject).listen(0, '127.0.0.1', resolve),
  )
  return server
}

export class Adapter {
  #origin
  #wraps
  #cache
  #targets = new Map() // id -> /test/UUID...
  #numbers = new Map() // id -> the fields in NUMBERS of its latest request
  #authorizations = new Map() // token -> a test's own Authorization
  #tags = new Map() // id -> the origin's entity tag -> the cache's
  #held = new Map() // the cache's entity tag -> the response that came with it
  #servers = []

  /** `origin`: the port of the package's origin. */
  static async start({ origin, wraps }) {
    const adapter = new Adapter()
    adapter.#origin = origin
    adapter.#wraps = wraps
    const front = await serve((request, response) => adapter.#front(request, response))
    const back = await serve((request, response) => adapter.#back(request, response))
    adapter.#servers = [front, back]
    adapter.url = `http://127.0.0.1:${front.address().port}`
    adapter.back = back.address().port
    return adapter
  }

  /** Sets the port of the cache. */
  set cache(port) {
    this.#cache = port
  }

  close() {
    for (const server of this.#servers) {
      server.closeAllConnections()
      server.close()
    }
  }

  /** Returns the cache's path for one of the origin. */
  #pathOf(target) {
    const id = digest(target, 24)
    this.#targets.set(id, target)
    return { id, path: `/customer/${id}/name` }
  }

  async #front(request, response) {
    const body = await read(request)
    const fields = without(
      pairs(request.rawHeaders),
      'host',
      'connection',
      'content-length',
      'transfer-encoding',
    )
    if (!request.url.startsWith('/test/')) {
      // Client and origin prepare a test and compare results here, without the cache.
      const answer = await ask(this.#origin, {
        method: request.method,
        target: request.url,
        fields,
        body,
      })
      send(response, {
        ...answer,
        fields: without(answer.fields, 'connection', 'keep-alive', 'transfer-encoding'),
      })
      return
    }
    const { id, path } = this.#pathOf(request.url)
    this.#numbers.set(
      id,
      fields.filter(([name]) => NUMBERS.includes(name.toLowerCase())),
    )
    const own = first(fields, 'authorization')
    const token = digest(`token ${own ?? ''}`, 32)
    this.#authorizations.set(token, own)
    const asked = without(fields, 'authorization').map(([name, value]) => [
      name,
      name.toLowerCase() === 'if-none-match' ? this.#tagsOfTheCache(id, value) : value,
    ])
    asked.push(['Authorization', `Bearer ${token}`])
    const answer = await ask(this.#cache, {
      method: request.method,
      target: path,
      fields: asked,
      body,
    })
    const given = this.#wraps ? this.#unwrapped(id, answer) : answer
    const kept = without(given.fields, 'connection', 'transfer-encoding', 'content-length')
    const length =
      request.method === 'HEAD' ? first(answer.fields, 'content-length') : given.body.length
    if (![204, 304].includes(given.status) && length !== undefined)
      kept.push(['Content-Length', String(length)])
    const seen = kept.map(([name, value]) => [
      name,
      /^(content-)?location$/i.test(name) ? this.#originsPath(value) : value,
    ])
    send(response, { ...given, fields: seen })
  }

  async #back(request, response) {
    const body = await read(request)
    const fields = pairs(request.rawHeaders)
    const { pathname, searchParams } = new URL(request.url, 'http://cache')
    if (pathname === '/auth/validateToken') {
      const person = digest(`person ${searchParams.get('token')}`, 24)
      const identity = { success: true, employee: person, customer: person, accessLevel: 'ADMIN' }
      send(response, {
        status: 200,
        fields: [['Content-Type', 'application/json']],
        body: JSON.stringify(identity),
      })
      return
    }
    const id = pathname.split('/')[2]
    const target = this.#targets.get(id)
    if (target === undefined) throw new Error(`${request.url} is not mapped`)
    const asked = without(
      fields,
      'host',
      'connection',
      'content-length',
      'transfer-encoding',
      'authorization',
      ...NUMBERS,
    )
    const own = this.#authorizations.get(first(fields, 'authorization')?.replace(/^Bearer /, ''))
    if (own !== undefined) asked.push(['Authorization', own])
    asked.push(...this.#numbers.get(id))
    const answer = await ask(this.#origin, { method: request.method, target, fields: asked, body })
    // node adds these to a response on a closing connection; a test's own `Connection` differs.
    const sent = answer.fields
      .filter(([name, value]) => !(name.toLowerCase() === 'connection' && value === 'close'))
      .map(([name, value]) => [
        name,
        /^(content-)?location$/i.test(name) ? this.#pathFor(value) : value,
      ])
    const bodiless = request.method === 'HEAD' || [204, 304].includes(answer.status)
    if (bodiless || !this.#wraps) {
      send(response, { ...answer, fields: sent })
      return
    }
    const { status, reason } = answer
    const wrapped = Buffer.from(
      JSON.stringify({
        status,
        reason,
        fields: answer.fields,
        body: answer.body.toString('base64'),
      }),
    )
    const framed = without(sent, 'content-length')
    if (first(sent, 'transfer-encoding') === undefined)
      framed.push(['Content-Length', String(wrapped.length)])
    send(response, {
      status: status === NOT_CONDITIONAL ? 400 : status,
      reason,
      fields: framed,
      body: wrapped,
    })
  }

  /** Returns a response of the gateway as the client sees it; an error of the gateway is unchanged. */
  #unwrapped(id, answer) {
    const tag = first(answer.fields, 'etag')
    let origin = this.#held.get(tag)
    if (answer.body.length > 0) {
      const document = JSON.parse(answer.body)
      if (document.fields === undefined) return answer
      origin = { ...document, body: Buffer.from(document.body, 'base64') }
      const originsTag = first(origin.fields, 'etag')
      if (tag !== undefined) this.#held.set(tag, origin)
      if (tag !== undefined && originsTag !== undefined) {
        this.#tags.set(
          id,
          (this.#tags.get(id) ?? new Map()).set(originsTag.replace(/^W\//, ''), tag),
        )
      }
    }
    if (origin === undefined) return answer
    const own = answer.fields.filter(([name]) => OWN.has(name.toLowerCase()))
    const carried = origin.fields.filter(([name]) => CARRIED.has(name.toLowerCase()))
    const status = origin.status === NOT_CONDITIONAL ? NOT_CONDITIONAL : answer.status
    const body = answer.body.length > 0 ? origin.body : answer.body
    return { status, reason: answer.reason, fields: [...own, ...carried], body }
  }

  /** Returns a client's `If-None-Match` with the cache's entity tags instead of the origin's. */
  #tagsOfTheCache(id, value) {
    const tags = this.#tags.get(id) ?? new Map()
    return value.replace(/"[^"]*"/g, tag => tags.get(tag) ?? tag)
  }

  /** Returns the cache's path for the target of a field of the origin. */
  #pathFor(value) {
    return value.startsWith('/test/') ? this.#pathOf(value).path : value
  }

  #originsPath(value) {
    return this.#targets.get(/^\/customer\/([0-9a-f]{24})\/name$/.exec(value)?.[1]) ?? value
  }
}
