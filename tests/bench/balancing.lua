-- Chat completions of many sessions whose prompts begin alike within a session; see balancing.py.
local threads = {}
local asked = 0
counts = {}  -- "session endpoint" -> answers

function setup(thread)
  table.insert(threads, thread)
end

function request()
  asked = asked + 1
  local session = (asked * 7919) % 200
  local start = string.rep("session " .. session .. " ", 30)
  local body = string.format(
    '{"model":"m","messages":[{"role":"system","content":"%s"},{"role":"user","content":"s%d"}],"max_tokens":1}',
    start, session)
  return wrk.format("POST", "/v1/chat/completions", { ["X-Session"] = tostring(session) }, body)
end

function response(status, headers, body)
  local endpoint, session = body:match('"model":"(%w+)".*"content":"s(%d+)"')
  if endpoint then
    local key = session .. " " .. endpoint
    counts[key] = (counts[key] or 0) + 1
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("served=%d failed=%d p50=%d p99=%d us=%d\n",
    summary.requests, errors.connect + errors.read + errors.write + errors.timeout + errors.status,
    latency:percentile(50), latency:percentile(99), summary.duration))
  for _, thread in ipairs(threads) do
    for key, count in pairs(thread:get("counts")) do
      io.write(string.format("count %s %d\n", key, count))
    end
  end
end
