// The package's origin, its handlers unchanged, on a free port of the loopback address (its own
// server listens on every address). Sends the port to its parent, and ends with it.
//
//   origin.mjs FOLDER     FOLDER: where the package is installed

import http from 'node:http'
import path from 'node:path'
import process from 'node:process'
import { pathToFileURL } from 'node:url'

const server = path.join(process.argv[2], 'http-cache-tests', 'server')
const handler = async name =>
  (await import(pathToFileURL(path.join(server, `handle-${name}.mjs`)))).default
const handlers = {
  config: await handler('config'),
  state: await handler('state'),
  test: await handler('test'),
}

const origin = http.createServer((request, response) => {
  const [, kind, ...segments] = new URL(request.url, 'http://origin').pathname.split('/')
  if (kind in handlers) {
    handlers[kind](segments, request, response)
  } else {
    response.writeHead(404).end()
  }
})
origin.listen(0, '127.0.0.1', () => process.send({ port: origin.address().port }))
process.on('disconnect', () => process.exit())
