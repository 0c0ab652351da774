// The caches under test as processes: the gateway and nginx, each in front of the same origin, on a
// free port.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import process from 'node:process'
import { setTimeout as wait } from 'node:timers/promises'

// Milliseconds that a start or an end may take before it counts as broken; machines are slow and
// noisy.
const PATIENCE = 60_000

/** Fields of the tests that the gateway is configured to store; the others cannot be configured. */
export const KEPT = [
  'Test-Header',
  'X-Test-Header',
  'Content-Foo',
  'X-Content-Foo',
  'Content-Location',
  'Content-Security-Policy',
  'Clear-Site-Data',
  'Public-Key-Pins',
  'X-Frame-Options',
  'X-XSS-Protection',
  'a',
  'b',
  'c',
]

/** A child process, ended by its handle. */
export class Child {
  static #all = new Set()

  constructor(command, args, log) {
    const sink = fs.openSync(log, 'w')
    this.log = log
    this.process = spawn(command, args, { stdio: ['ignore', sink, sink] })
    fs.closeSync(sink)
    this.process.once('error', error => {
      this.failed = error
    })
    Child.#all.add(this)
  }

  get ended() {
    return (
      this.failed !== undefined ||
      this.process.exitCode !== null ||
      this.process.signalCode !== null
    )
  }

  /** Waits until `is` is true or the process has ended. */
  async ready(is) {
    const deadline = Date.now() + PATIENCE
    while (!this.ended && Date.now() < deadline) {
      if (await is()) return
      await wait(20)
    }
    const how = this.failed?.message ?? (this.ended ? 'ended before it answered' : 'did not answer')
    throw new Error(`${this.process.spawnargs[0]}: ${how}\n${fs.readFileSync(this.log, 'utf8')}`)
  }

  async end() {
    Child.#all.delete(this)
    if (this.ended) return
    const exit = once(this.process, 'exit')
    this.process.kill('SIGTERM')
    const late = setTimeout(() => this.process.kill('SIGKILL'), 10_000)
    await exit
    clearTimeout(late)
  }

  static endAll() {
    for (const child of Child.#all) child.process.kill('SIGTERM')
  }
}

async function unusedPort() {
  const probe = net.createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address()
  probe.close()
  await once(probe, 'close')
  return port
}

const answers = (port, target) =>
  new Promise(resolve => {
    const request = http.get({ port, host: '127.0.0.1', path: target, agent: false }, answer => {
      answer.resume()
      resolve(answer.statusCode === 200)
    })
    request.on('error', () => resolve(false))
  })

const accepts = port =>
  new Promise(resolve => {
    const socket = net.connect(port, '127.0.0.1', () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })

/** The gateway with defaults, except a lifetime longer than a run and without jitter. */
export async function gateway(binary, folder, upstream) {
  const [port, admin] = [await unusedPort(), await unusedPort()]
  const config = path.join(folder, 'gateway.toml')
  fs.writeFileSync(
    config,
    `
[server]
listen = ["127.0.0.1:${port}"]
drain = "1s"
[admin]
listen = "127.0.0.1:${admin}"
[upstream]
url = "http://127.0.0.1:${upstream}"
[cache]
ttl = "10m"
ttl_jitter = 0.0
keep_fields = ${JSON.stringify(KEPT)}
# An answer while revalidating would need the tests to know of the request in the background.
stale_while_revalidate = "0s"
[log]
format = "text"
access = "errors"
`,
  )
  const child = new Child(binary, ['run', '-c', config], path.join(folder, 'gateway.log'))
  await child.ready(() => answers(admin, '/readyz'))
  return { child, port }
}

/** nginx as a cache for each caller, with the settings of its manual for a cache that follows the origin. */
export async function nginx(binary, folder, upstream) {
  const port = await unusedPort()
  const config = path.join(folder, 'nginx.conf')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    kind => `${kind}_temp_path ${folder}/nginx-${kind};`,
  )
  fs.writeFileSync(
    config,
    `
${process.getuid() === 0 ? 'user root;' : ''}
worker_processes 1;
daemon off;
pid ${folder}/nginx.pid;
error_log stderr warn;
events {}
http {
  access_log off;
  ${temporary.join('\n  ')}
  proxy_cache_path ${folder}/nginx-cache levels=1:2 keys_zone=tests:8m max_size=100m inactive=10m;
  server {
    listen 127.0.0.1:${port};
    location / {
      proxy_pass http://127.0.0.1:${upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_cache tests;
      proxy_cache_key "$http_authorization $request_uri";
      proxy_cache_revalidate on;
      proxy_cache_lock on;
      proxy_cache_use_stale error timeout http_500 http_502 http_503 http_504;
    }
  }
}
`,
  )
  const child = new Child(
    binary,
    ['-p', folder, '-e', 'stderr', '-c', config],
    path.join(folder, 'nginx.log'),
  )
  await child.ready(() => accepts(port))
  return { child, port }
}
