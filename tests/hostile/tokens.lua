-- Each request has a different token, customer and client address.
-- wrk … -- SEED
function init(args)
    math.randomseed(tonumber(args[1]))
end

local function hex(words)
    local said = {}
    for word = 1, words do
        said[word] = string.format("%08x", math.random(0, 4294967295))
    end
    return table.concat(said)
end

function request()
    local octet = math.random
    local network = octet(1, 223) .. "." .. octet(0, 255) .. "." .. octet(0, 255)
    local address = network .. "." .. octet(1, 254)
    local fields = {["Authorization"] = "Bearer tok-" .. hex(4), ["X-Forwarded-For"] = address}
    return wrk.format("GET", "/customer/" .. hex(3) .. "/name", fields)
end
