-- The load of the benches that compare. Arguments: how many milliseconds all connections are to be open before anything
-- is asked over them, how many connections there are, and the bodies to POST in turn, over and over. FILL(N) in a body
-- stands for N letters, because an argument can't be that long. It looks at no answer while the load runs, so it costs
-- as little as wrk can; the figures come in one line at the end, latencies in microseconds. wrk runs a function before
-- every request if there is one called `request`, or called `delay`.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long seconds; long nanoseconds; } moment;
    int clock_gettime(int clock, moment *now);
]]

local function monotonic_ms()
    local now = ffi.new("moment")
    ffi.C.clock_gettime(1, now)
    return tonumber(now.seconds) * 1e3 + tonumber(now.nanoseconds) * 1e-6
end

local function filled(body)
    return (body:gsub("FILL%((%d+)%)", function(count)
        return string.rep("A", tonumber(count))
    end))
end

function init(args)
    local opening_ms, unasked = tonumber(args[1]), tonumber(args[2])
    wrk.method = "POST"
    wrk.body = filled(args[3])
    wrk.headers["Content-Type"] = "application/json"
    if #args > 3 then
        local requests, last = {}, 0
        for at = 3, #args do
            requests[at - 2] = wrk.format(nil, nil, nil, filled(args[at]))
        end
        function request()
            last = last % #requests + 1
            return requests[last]
        end
    end
    if opening_ms > 0 then
        local begin = monotonic_ms() + opening_ms
        function delay() -- milliseconds until the next request; the first calls are for the first request of each
            if unasked == 0 then
                return 0
            end
            unasked = unasked - 1
            return math.max(0, math.floor(begin - monotonic_ms()))
        end
    end
end

function done(summary, latency)
    local errors = summary.errors
    print(string.format("RESULT %d %d %d %d %d %d", summary.requests, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99), summary.duration))
end
