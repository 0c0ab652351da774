// Stands on both sides of a cache under test, so that the package's client and origin, which speak of /test/UUID, meet it
// as a caller and the API would:
//
//   client -> front -> cache -> back -> origin
//
// Mapped for every cache, and back again: /test/UUID... is /customer/ID/name with an ID made of it (a query or a file name
// is a part of what the ID is made of), and the caller is a bearer token (a test's own `Authorization` is another caller's).
// What a test sends beside that reaches the cache, and what the cache sends reaches the origin, with one exception: the
// fields by which client and origin number their requests are the front's to hand over, since a cache may drop them.
//
// The gateway stores JSON objects only and sends fields of its own only, so for it (`wraps`) the origin's answer travels as
// a JSON object in the body of an answer with the same status and fields, and the front makes of it what the client sees:
//   - the origin's body,
//   - of the origin's fields those in CARRIED, which the client must see to know that nothing was lost on the way,
//   - the gateway's own `Age`, `Date` and `Content-Type`, and the fields that it is configured to keep
//     (KEPT). Every other field of the origin's is lost, as it is for callers,
//   - entity tags: the gateway's are of what it sends, so each stands for the origin's within the same answer, both ways.
// A cache that needs none of this sends what it sends.

import { createHash } from 'node:crypto'
import http from 'node:http'

import { KEPT } from './caches.mjs'

// Numbers by which the package's origin tells of its side, the header that its templates use as a mark, and what decides
// about caching, which the gateway reads and answers with its own.
const CARRIED = new Set([
  'server-base-url', 'server-request-count', 'client-request-count', 'server-now', 'capability-seen', 'request-numbers',
  'template-a',
  'cache-control', 'content-disposition', 'etag', 'expires', 'last-modified', 'location', 'pragma',
  'surrogate-control', 'vary'
])
const OWN = new Set(['age', 'date', 'content-type', ...KEPT.map(name => name.toLowerCase())])
const NUMBERS = ['req-num', 'test-id', 'test-name']

// The package's word for "this should have been a conditional request". It is no status of HTTP; it travels as 400.
const NOT_CONDITIONAL = 999

// Milliseconds for one exchange. Beyond the gateway's own bounds: what it gives up on, it shall say itself.
const PATIENCE = 30_000

/** A digest in hexadecimal, `length` characters of it. */
const digest = (text, length) => createHash('sha256').update(text).digest('hex').slice(0, length)

/** `[name, value]` pairs of node's flat list. */
const pairs = raw => raw.flatMap((name, i) => (i % 2 ? [] : [[name, raw[i + 1]]]))
const first = (fields, wanted) => fields.find(([name]) => name.toLowerCase() === wanted)?.[1]
const without = (fields, ...names) => fields.filter(([name]) => !names.includes(name.toLowerCase()))

async function read (message) {
  const chunks = []
  for await (const chunk of message) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** One exchange on a connection of its own. */
function ask (port, { method, target, fields, body }) {
  return new Promise((resolve, reject) => {
    let given
    const framed = [['Host', `127.0.0.1:${port}`], ...fields, ['Connection', 'close']]
    if (body.length > 0) framed.push(['Content-Length', String(body.length)])
    const options = { port, host: '127.0.0.1', method, path: target, headers: framed.flat(), agent: false, timeout: PATIENCE }
    const request = http.request(options, async answer => {
      given = answer
      try {
        const body = await read(answer)
        resolve({ status: answer.statusCode, reason: answer.statusMessage, fields: pairs(answer.rawHeaders), body })
      } catch (error) {
        reject(error)
      }
    })
    request.on('timeout', () => request.destroy(new Error('timeout')))
    // What follows a whole answer on a connection that closes is nobody's: some tests announce less than they send.
    request.on('error', error => given?.complete || reject(error))
    request.end(body)
  })
}

function send (response, { status, reason, fields, body }) {
  response.sendDate = false
  response.writeHead(status, reason, fields.flat())
  response.end(body)
}

/** A server whose handler's failure is a closed connection: that is what a broken answer looks like from outside. */
async function serve (handler) {
  const server = http.createServer((request, response) => {
    handler(request, response).catch(() => response.socket?.destroy())
  })
  await new Promise((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve))
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
  #held = new Map() // the cache's entity tag -> the answer that came with it
  #servers = []

  /** `origin`: the port of the package's origin. */
  static async start ({ origin, wraps }) {
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

  /** The port of the cache, as soon as it is there. */
  set cache (port) {
    this.#cache = port
  }

  close () {
    for (const server of this.#servers) {
      server.closeAllConnections()
      server.close()
    }
  }

  /** The path that stands for one of the origin's. */
  #pathOf (target) {
    const id = digest(target, 24)
    this.#targets.set(id, target)
    return { id, path: `/customer/${id}/name` }
  }

  async #front (request, response) {
    const body = await read(request)
    const fields = without(pairs(request.rawHeaders), 'host', 'connection', 'content-length', 'transfer-encoding')
    if (!request.url.startsWith('/test/')) {
      // How client and origin prepare a test, and compare what each saw: not the cache's to see.
      const answer = await ask(this.#origin, { method: request.method, target: request.url, fields, body })
      send(response, { ...answer, fields: without(answer.fields, 'connection', 'keep-alive', 'transfer-encoding') })
      return
    }
    const { id, path } = this.#pathOf(request.url)
    this.#numbers.set(id, fields.filter(([name]) => NUMBERS.includes(name.toLowerCase())))
    const own = first(fields, 'authorization')
    const token = digest(`token ${own ?? ''}`, 32)
    this.#authorizations.set(token, own)
    const asked = without(fields, 'authorization').map(([name, value]) =>
      [name, name.toLowerCase() === 'if-none-match' ? this.#tagsOfTheCache(id, value) : value])
    asked.push(['Authorization', `Bearer ${token}`])
    const answer = await ask(this.#cache, { method: request.method, target: path, fields: asked, body })
    const given = this.#wraps ? this.#unwrapped(id, answer) : answer
    const kept = without(given.fields, 'connection', 'transfer-encoding', 'content-length')
    const length = request.method === 'HEAD' ? first(answer.fields, 'content-length') : given.body.length
    if (![204, 304].includes(given.status) && length !== undefined) kept.push(['Content-Length', String(length)])
    const seen = kept.map(([name, value]) => [name, /^(content-)?location$/i.test(name) ? this.#originsPath(value) : value])
    send(response, { ...given, fields: seen })
  }

  async #back (request, response) {
    const body = await read(request)
    const fields = pairs(request.rawHeaders)
    const { pathname, searchParams } = new URL(request.url, 'http://cache')
    if (pathname === '/auth/validateToken') {
      const person = digest(`person ${searchParams.get('token')}`, 24)
      const identity = { success: true, employee: person, customer: person, accessLevel: 'ADMIN' }
      send(response, { status: 200, fields: [['Content-Type', 'application/json']], body: JSON.stringify(identity) })
      return
    }
    const id = pathname.split('/')[2]
    const target = this.#targets.get(id)
    if (target === undefined) throw new Error(`${request.url} stands for nothing`)
    const asked = without(fields, 'host', 'connection', 'content-length', 'transfer-encoding', 'authorization', ...NUMBERS)
    const own = this.#authorizations.get(first(fields, 'authorization')?.replace(/^Bearer /, ''))
    if (own !== undefined) asked.push(['Authorization', own])
    asked.push(...this.#numbers.get(id))
    const answer = await ask(this.#origin, { method: request.method, target, fields: asked, body })
    // What node adds of its own to an answer on a connection that closes; a test's own `Connection` is another.
    const sent = answer.fields
      .filter(([name, value]) => !(name.toLowerCase() === 'connection' && value === 'close'))
      .map(([name, value]) => [name, /^(content-)?location$/i.test(name) ? this.#pathFor(value) : value])
    const bodiless = request.method === 'HEAD' || [204, 304].includes(answer.status)
    if (bodiless || !this.#wraps) {
      send(response, { ...answer, fields: sent })
      return
    }
    const { status, reason } = answer
    const wrapped = Buffer.from(JSON.stringify({ status, reason, fields: answer.fields, body: answer.body.toString('base64') }))
    const framed = without(sent, 'content-length')
    if (first(sent, 'transfer-encoding') === undefined) framed.push(['Content-Length', String(wrapped.length)])
    send(response, { status: status === NOT_CONDITIONAL ? 400 : status, reason, fields: framed, body: wrapped })
  }

  /** What the client sees of an answer of the gateway's; one that the gateway made itself, it sees as it is. */
  #unwrapped (id, answer) {
    const tag = first(answer.fields, 'etag')
    let origin = this.#held.get(tag)
    if (answer.body.length > 0) {
      const document = JSON.parse(answer.body)
      if (document.fields === undefined) return answer
      origin = { ...document, body: Buffer.from(document.body, 'base64') }
      const originsTag = first(origin.fields, 'etag')
      if (tag !== undefined) this.#held.set(tag, origin)
      if (tag !== undefined && originsTag !== undefined) {
        this.#tags.set(id, (this.#tags.get(id) ?? new Map()).set(originsTag.replace(/^W\//, ''), tag))
      }
    }
    if (origin === undefined) return answer
    const own = answer.fields.filter(([name]) => OWN.has(name.toLowerCase()))
    const carried = origin.fields.filter(([name]) => CARRIED.has(name.toLowerCase()))
    const status = origin.status === NOT_CONDITIONAL ? NOT_CONDITIONAL : answer.status
    const body = answer.body.length > 0 ? origin.body : answer.body
    return { status, reason: answer.reason, fields: [...own, ...carried], body }
  }

  /** A caller's `If-None-Match`, with the cache's entity tags in the place of the origin's. */
  #tagsOfTheCache (id, value) {
    const tags = this.#tags.get(id) ?? new Map()
    return value.replace(/"[^"]*"/g, tag => tags.get(tag) ?? tag)
  }

  /** The path that stands for where a field of the origin's points. */
  #pathFor (value) {
    return value.startsWith('/test/') ? this.#pathOf(value).path : value
  }

  #originsPath (value) {
    return this.#targets.get(/^\/customer\/([0-9a-f]{24})\/name$/.exec(value)?.[1]) ?? value
  }
}
