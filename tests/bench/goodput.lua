-- The load of goodput.py: POST /infer, answers counted by status inside a window of time.
-- Arguments: first and last moment that count (seconds of CLOCK_MONOTONIC), and the pause after a 429 (milliseconds).

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long seconds; long nanoseconds; } moment;
    int clock_gettime(int clock, moment *now);
]]
local now = ffi.new("moment")

local function monotonic()
    ffi.C.clock_gettime(1, now)
    return tonumber(now.seconds) + tonumber(now.nanoseconds) * 1e-9
end

wrk.method = "POST"
wrk.body = '{"prompt": "How much is enough?"}'
wrk.headers["Content-Type"] = "application/json"

local threads = {}

function setup(thread)
    thread:set("number", #threads + 1)
    table.insert(threads, thread)
end

-- What follows runs in each thread, in a state of its own; `done` reads these globals from outside.
served, refused, others = 0, 0, 0
local from, to, pause_ms
local pauses, first, last = {}, 1, 0 -- one for every answer, in order: wrk asks for them in the same order

function init(args)
    from, to, pause_ms = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
    math.randomseed(number)
    if pause_ms > 0 then
        -- wrk asks how long a connection is to wait before its next request; the first time there was no answer yet.
        function delay()
            if first > last then
                return 0
            end
            local pause = pauses[first]
            pauses[first] = nil
            first = first + 1
            return pause
        end
    end
end

function response(status)
    if pause_ms > 0 then
        last = last + 1
        pauses[last] = status == 429 and math.floor(pause_ms * (0.5 + math.random())) or 0
    end
    local at = monotonic()
    if at < from or at >= to then
        return
    end
    if status == 200 then
        served = served + 1
    elseif status == 429 then
        refused = refused + 1
    else
        others = others + 1
    end
end

function done(summary)
    local sums = { served = 0, refused = 0, others = 0 }
    for _, thread in ipairs(threads) do
        for name, sum in pairs(sums) do
            sums[name] = sum + thread:get(name)
        end
    end
    local broken = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
    print(string.format("RESULT %d %d %d %d", sums.served, sums.refused, sums.others, broken))
end
