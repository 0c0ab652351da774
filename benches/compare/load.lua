-- wrk sends the requests of a file one after the other and repeats them. Arguments: file, seed, the
-- number of threads, of which each begins at another place and makes separate ids, and the host. Lines
-- that begin with `+` are fields of every request.

local threads = 0
function setup(thread)
    thread:set("which", threads)
    threads = threads + 1
end

local requests, position, fresh, prefix = {}, 0, 0, ""

function init(args)
    local file, seed, count = args[1], args[2], tonumber(args[3])
    prefix = seed .. string.format("%02x", which)
    local fields = {}
    for line in io.lines(file) do
        local name, value = line:match("^%+([^:]+): ?(.*)$")
        if name then
            fields[name] = value
        end
    end
    for line in io.lines(file) do
        local token, path, etag = line:match("^(%S+) (%S+) ?(%S*)$")
        if token and line:sub(1, 1) ~= "+" then
            local headers = { ["Authorization"] = "Bearer " .. token, ["Host"] = args[4] }
            if etag ~= "" then
                headers["If-None-Match"] = etag
            end
            for name, value in pairs(fields) do
                headers[name] = value
            end
            local has_new_id = path:find("{}", 1, true) ~= nil
            requests[#requests + 1] = { wrk.format("GET", path, headers), has_new_id }
        end
    end
    position = math.floor(#requests / count * which)
end

function request()
    position = position % #requests + 1
    local bytes = requests[position]
    if bytes[2] then
        fresh = fresh + 1
        return (bytes[1]:gsub("{}", prefix .. string.format("%010x", fresh), 1))
    end
    return bytes[1]
end
