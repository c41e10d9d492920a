-- The load of the benches that compare: POST the first argument, over and over. It looks at no answer while the load
-- runs, so it costs as little as wrk can; the figures come in one line at the end, latencies in microseconds.

function init(args)
    wrk.method = "POST"
    wrk.body = args[1]
    wrk.headers["Content-Type"] = "application/json"
end

function done(summary, latency)
    local errors = summary.errors
    print(string.format("RESULT %d %d %d %d %d %d", summary.requests, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99), summary.duration))
end
