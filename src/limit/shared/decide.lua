-- Decides limits that several gateways share: one call for all of a request's limits, or for a batch of leases.
--
-- KEYS: the memory of the server, then one hash per counter, all in one slot. Fields of the memory: s (since when the
-- server has its data), r (when its lifetime was renewed), and one per gateway that has reported all that it remembers
-- since then. Fields of a counter: u (end of the window, or the theoretical arrival time),
-- e (generation: the time at which the counter was begun anew), r (reports of this and earlier generations are over, by
-- a reset or the end of their window), t (granted to all gateways), f (a lower bound of t after the
-- server has lost data), x (when the first lease expires), of a window with debts d (what the next ones owe) and l (the
-- limit that it exceeds), of a rate i (the time per request by which u is charged) and b (the arrival time that was
-- restored after a loss), and one field per gateway:
-- "granted sequence", with a lease
-- "granted sequence used expiry", for slots "granted sequence expiry". A lease that its gateway does not renew expires:
-- of what was granted, its gateway keeps what it has reported as used.
-- Amounts of a gateway are absolute: a repeated message changes nothing, and a lost response is made up for by the next.
-- Times are microseconds since BASE by this server's clock, so that they and every amount are exact in a double.
--
-- A server that has lost its data decides nothing new until all other gateways have reported what they remember, or for
-- RESTORE_TIME: a gateway without a record of a counter would be granted its whole limit a second time.
--
-- ARGV: the gateway's id, "all" or "each", the gateway's time if this server does not tell its own, the number of
-- gateways, and the `s` since which this one has reported all; then per counter the fields of `Message`. Returns the
-- time and `s`, and per counter: status, generation, until, total, granted, wait, continues, debt, its limit.
local BASE, HEAD, FIELDS, MAX_OWED_WINDOWS = 1700000000000000, 5, 22, 400
local RESTORE_TIME, MEMORY_TIME, RENEWAL = 2000000, 86400000, 3600000000
local me, all = ARGV[1], ARGV[2] == 'all'
local clock = redis.pcall('TIME')
local now = clock.err and tonumber(ARGV[3]) or clock[1] * 1000000 + clock[2] - BASE

local function whole(number) return string.format('%.0f', number) end
local function fine(number) return string.format('%.17g', number) end

-- Runs a command that reads a hash. A key of another type, which no gateway has written, makes room.
local function hash(command, key, ...)
  local h = redis.pcall(command, key, ...)
  if h.err then
    if string.find(h.err, 'WRONGTYPE', 1, true) then redis.call('DEL', key) end
    h = redis.call(command, key, ...)
  end
  return h
end

-- Returns since when the server has its data, and whether other gateways may remember data that it has lost.
local function remember()
  local h = hash('HMGET', KEYS[1], 's', 'r', me)
  local since, renewed, is_known = tonumber(h[1]), tonumber(h[2]), h[3]
  if not since or not renewed or now - renewed > RENEWAL then
    since = since or now
    redis.call('HSET', KEYS[1], 's', whole(since), 'r', whole(now))
    redis.call('PEXPIRE', KEYS[1], MEMORY_TIME)
  end
  local has_reported = tonumber(ARGV[5]) == since
  if has_reported and not is_known then redis.call('HSET', KEYS[1], me, '1') end
  if since > now or now - since >= RESTORE_TIME then return since, false end
  local others = redis.call('HLEN', KEYS[1]) - 2 - ((has_reported or is_known) and 1 or 0)
  return since, others < tonumber(ARGV[4]) - 1
end

local function read(i)
  local a = HEAD + (i - 1) * FIELDS
  local function number(n) return tonumber(ARGV[a + n]) end
  local flags = ARGV[a + 4]
  return {
    key = KEYS[i + 1], kind = ARGV[a + 1], field = me .. ':' .. ARGV[a + 2], seq = number(3),
    ask = flags:find('a', 1, true), lower = flags:find('l', 1, true), close = flags:find('x', 1, true),
    open = flags:find('o', 1, true), reset = flags:find('r', 1, true),
    debts = flags:find('d', 1, true), dry = flags:find('n', 1, true),
    limit = number(5), one = number(6), two = number(7), three = number(8),
    used = number(9), pending = number(10), mine = number(11), target = number(12), shares = number(13),
    gen = number(14), seen = number(15), seen_total = number(16), lifetime = number(17),
    excess = number(18), excess_limit = number(19), cost = number(20),
    debt = number(21), debt_limit = number(22),
  }
end

local function load(it)
  local h = hash('HMGET', it.key, 'u', 'e', 't', 'f', 'x', it.field, 'd', 'l', 'i', 'r', 'b')
  it.u, it.e, it.t, it.f = tonumber(h[1]), tonumber(h[2]), tonumber(h[3]) or 0, tonumber(h[4]) or 0
  it.x = tonumber(h[5])
  if it.x == 0 then it.x = nil end
  it.d, it.l, it.interval = tonumber(h[7]), tonumber(h[8]), tonumber(h[9])
  it.r, it.b = tonumber(h[10]) or 0, tonumber(h[11]) or 0
  local granted, seq, used, expires = string.match(h[6] or '', '^(%S+) (%S+) ?(%S*) ?(%S*)')
  it.g, it.last = tonumber(granted), tonumber(seq) or 0
  it.kept, it.expires = tonumber(used) or it.g, tonumber(expires)
end

-- Takes back the leases that gateways other than the caller's have not renewed; returns their amount.
local function expire(it)
  if not it.x or it.x > now then return 0 end
  local h = redis.call('HGETALL', it.key)
  local amount = 0
  it.x, it.changed = nil, true
  for n = 1, #h, 2 do
    local granted, seq, used, expires = string.match(h[n + 1], '^(%S+) (%S+) (%S+) (%S+)$')
    if expires and h[n] ~= it.field then
      if tonumber(expires) > now then
        it.x = math.min(it.x or math.huge, tonumber(expires))
      else
        amount = amount + granted - used
        -- A gateway that comes back must find what was counted for it; a rate has no such account.
        if it.kind == 'w' then
          redis.call('HSET', it.key, h[n], used .. ' ' .. seq)
        else
          redis.call('HDEL', it.key, h[n])
        end
      end
    end
  end
  it.t, it.f = math.max(0, it.t - amount), math.max(0, it.f - amount)
  return amount
end

-- Returns what the next window owes: of what requests turned out to cost, the part above their limit that has not been given
-- back. Use within the larger limit of another plan is no debt. A window of an earlier version has no account of it.
local function owed(it)
  local above = math.max(0, math.max(it.t, it.f) - (it.l or it.limit))
  return math.min(it.d or above, above)
end

-- Returns the length of a window.
local function length(it) return it.one == 0 and it.two or it.two - it.one end

-- Returns how many windows after this one pay for `amount` units beyond its limit, each with its whole limit.
local function windows(it, amount) return math.min(MAX_OWED_WINDOWS, math.ceil(amount / it.limit)) end

-- Whether the gateway remembers a window that lasts, and that is neither reset nor over.
local function lasts_elsewhere(it)
  return it.seen > now and it.seen <= now + it.three and (it.gen == 0 or it.gen > it.r)
end

-- A quota in windows. one: end of the window around the gateway's now, or 0; two: end of the next, or the length of a
-- window that begins with the first request; three: the longest time that a window may last from now.
local function window(it)
  load(it)
  local lasts = it.u and it.u > now
  if not lasts then
    local ends = it.one == 0 and now + it.two or (now < it.one and it.one or it.two)
    local rest = 0
    if it.debts and it.u then
      -- What exceeded the last window is owed by those after it, of which some have passed without a request.
      local passed = math.floor((now - it.u) / length(it))
      rest = math.max(0, math.min(owed(it), MAX_OWED_WINDOWS * it.limit) - passed * it.limit)
      if rest > 0 and it.one == 0 then ends = it.u + (passed + 1) * it.two end
    end
    it.r = math.max(it.r, it.e or 0)
    it.u, it.e = lasts_elsewhere(it) and it.seen or ends, now
    it.t, it.f, it.g, it.last, it.fresh, it.changed = rest, rest, nil, 0, true, rest > 0
    it.d, it.l = math.max(0, rest - it.limit), it.limit
    it.x, it.kept, it.expires = nil, nil, nil
  else
    if it.u > now + it.three then
      -- This server's clock was far ahead when the window began.
      it.u = it.one == 0 and now + it.two or it.one
    end
    expire(it)
    it.d, it.l = owed(it), it.l or it.limit
  end
  local is_older = it.gen ~= it.e and it.gen ~= 0 and lasts_elsewhere(it)
  it.continues = it.gen == it.e or is_older or (it.gen == 0 and it.seen > now)
  if not it.continues then it.used, it.mine = 0, 0 end
  -- The window began before the loss of data, and not with the first request after that.
  if is_older and it.one == 0 then it.u = math.min(it.u, it.seen) end
  local g = it.g or 0
  if is_older or (it.seq > it.last and g < it.mine) then
    -- The server has lost what it had granted.
    local more = math.max(0, it.mine - g)
    it.t, it.f, it.changed = it.t + more, math.max(it.f, it.seen_total), true
    if it.debt > (it.d or 0) then it.d, it.l = it.debt, it.debt_limit end
    g = g + more
  end
  if it.used > g then
    local before, more, limit = owed(it), it.used - g, it.excess_limit
    local excess = math.min(more, it.excess)
    if excess > 0 then
      local counted = math.min(math.max(it.t, it.f) + more - excess, limit + before)
      it.d, it.l = math.max(before, counted + excess - limit), limit
    end
    it.t, it.f, it.changed = it.t + more, it.f + more, true
    g = it.used
  end
  it.g = g
  it.room = it.limit - math.max(it.t, it.f)
  it.wait = it.u - now
end

local function charge(it, amount)
  local before = it.u
  it.u = math.min(math.max(it.u, now) + amount * it.two, math.max(now + it.three, before))
end

-- A rate. one: time to refill the whole burst; two: time per request; three: the longest debt.
local function rate(it)
  load(it)
  it.u, it.e = it.u or now, it.e or now
  it.continues = it.gen == 0 or it.gen == it.e or it.gen > it.r
  if it.interval and it.interval ~= it.two and it.u > now then
    -- Another rate has charged it, of another plan or of an earlier configuration: at this one as many requests are used.
    local scale = it.two / it.interval
    it.u, it.changed = now + (it.u - now) * scale, true
    it.b = now + math.max(0, it.b - now) * scale
  end
  it.u = it.u - expire(it) * it.two
  if it.gen ~= it.e and it.gen ~= 0 and it.continues then
    -- The server has lost the debt that the gateway remembers, and is told of it by several: it is added once.
    local base = math.max(it.b, now)
    local more = math.max(0, it.seen - base)
    it.u, it.b, it.g, it.changed = math.max(it.u, now) + more, base + more, math.max(it.g or 0, it.mine), true
  elseif not it.g then
    if it.gen == it.e then it.u, it.changed = math.max(it.u, it.seen), true end
    it.g = it.mine
  elseif it.seq > it.last and it.g < it.mine then
    it.u, it.g, it.changed = math.max(it.u, it.seen), it.mine, true
  end
  if it.used > it.g then
    charge(it, it.used - it.g)
    it.g, it.changed = it.used, true
  end
  -- This server's clock was far ahead when the debt was taken.
  if it.u > now + it.three then it.u, it.changed = now + it.three, true end
  it.room = math.floor((it.one - (math.max(it.u, now) - now)) / it.two + 0.000001)
end

-- Requests in flight. one: lifetime of a slot without renewal.
local function slots(it)
  local h = hash('HGETALL', it.key)
  it.u, it.e, it.t, it.f, it.g, it.last, it.dead, it.continues = now, 1, 0, 0, 0, 0, {}, true
  for n = 1, #h, 2 do
    local granted, seq, expires = string.match(h[n + 1], '^(%S+) (%S+) (%S+)')
    if h[n] == it.field then
      it.g, it.last = tonumber(granted), tonumber(seq)
    elseif not expires or tonumber(expires) <= now then
      it.dead[#it.dead + 1] = h[n]
    else
      it.t = it.t + tonumber(granted)
    end
  end
  it.others = it.t
  it.g = math.max(it.g, it.used)
  it.t, it.changed = it.t + it.g, true
  it.room = it.limit - it.t
  it.wait = 1000000
end

local since, is_learning = remember()
local items, admitted = {}, true
for i = 1, #KEYS - 1 do
  local it = read(i)
  if it.reset then
    load(it)
    redis.call('DEL', it.key)
    if it.u then
      local ends, over = it.kind == 'w' and it.u or now, math.max(now, it.e or 0, it.r)
      redis.call('HSET', it.key, 'u', fine(ends), 'e', whole(now), 'r', whole(over), 't', '0', 'f', '0')
      redis.call('PEXPIRE', it.key, math.ceil(math.max(it.u - now, 0) / 1000) + 60000)
    end
  end
  if it.kind == 'w' then window(it) elseif it.kind == 'g' then rate(it) else slots(it) end
  if it.reset and it.kind ~= 'c' then it.changed = true end
  -- Below zero, the lease covers the request; its caller's limit may be smaller than the one that the lease was granted by.
  local must = it.used + it.pending - it.g
  it.need = it.ask and math.max(0, must) or 0
  if it.open then must = math.min(must, 1) end
  it.fits = not it.ask or it.pending == 0 or must <= it.room
  it.undecided = is_learning and (it.kind == 'c' or it.e >= since)
  if it.undecided and it.fits and it.need > 0 then it.fits, it.status = false, 3 end
  if it.kind == 'w' and not it.fits and it.debts then
    it.wait = it.wait + math.max(0, windows(it, owed(it) + math.min(must, it.limit)) - 1) * length(it)
  end
  if it.kind == 'g' and not it.fits then it.wait = math.max(it.u, now) - now + must * it.two - it.one end
  admitted = admitted and (it.fits or it.dry)
  items[i] = it
end

local response = {math.floor(now), math.floor(since)}
for i, it in ipairs(items) do
  local granted = it.fits and (admitted or not all)
  if granted then
    -- A lease that does not cover a request keeps others from what is left.
    local free = it.g + it.need - it.used - it.pending
    local most = it.undecided and 0 or it.target - free
    local extra = math.min(most, math.floor((it.room - it.need) / it.shares))
    extra = math.max(0, extra - (free + extra) % it.cost)
    local add = it.need + extra
    if add > 0 then
      it.g, it.t, it.f, it.changed = it.g + add, it.t + add, it.f + add, true
      if it.kind == 'g' then charge(it, add) end
    end
  end
  local kept = it.used + it.pending
  -- The place of a refused request is given back with the rest.
  local keeps = kept + (it.ask and -it.cost or it.target)
  if it.lower and not (it.ask and it.fits) and it.seq > it.last and it.g > keeps then
    local cut = it.g - keeps
    it.g, it.t, it.f, it.changed = keeps, math.max(0, it.t - cut), math.max(0, it.f - cut), true
    if it.kind == 'g' then it.u = it.u - cut * it.two end
  end
  -- An older message reports nothing that is not known.
  if it.seq >= it.last then it.kept = math.min(it.g, granted and kept or it.used) end
  local leased = it.lifetime > 0 and it.g > (it.kept or it.g)
  it.last = math.max(it.last, it.seq)
  local close = it.close and it.seq >= it.last
  -- A lease is renewed, and the sequence lets a return be ignored that this message has overtaken.
  if it.changed or close or leased or it.expires or (it.ask and granted) then
    local ttl
    if it.kind == 'c' then
      for _, field in ipairs(it.dead) do redis.call('HDEL', it.key, field) end
      if it.g > 0 then
        redis.call('HSET', it.key, it.field, whole(it.g) .. ' ' .. whole(it.last) .. ' ' .. whole(now + it.one))
      else
        redis.call('HDEL', it.key, it.field)
      end
      ttl = it.one / 1000 + 1000
    else
      if it.fresh then redis.call('DEL', it.key) end
      local own = whole(it.g) .. ' ' .. whole(it.last)
      if leased then
        local expires = now + it.lifetime
        it.x = math.min(it.x or expires, expires)
        own = own .. ' ' .. whole(it.kept) .. ' ' .. whole(expires)
      end
      redis.call('HSET', it.key, 'u', fine(it.u), 'e', fine(it.e), 't', whole(it.t), 'f', whole(it.f),
        'r', whole(it.r), 'x', whole(it.x or 0), it.field, own)
      if it.debts then redis.call('HSET', it.key, 'd', whole(it.d or 0), 'l', whole(it.l or it.limit)) end
      if it.kind == 'g' then redis.call('HSET', it.key, 'i', fine(it.two), 'b', fine(it.b)) end
      if close then redis.call('HDEL', it.key, it.field) end
      ttl = math.max(it.u - now, 0) / 1000 + (it.kind == 'w' and 1000 or 10000)
      -- A gateway that has not heard of a reset remembers the debt before it: the lifetime of then is kept.
      if it.kind == 'g' and it.r > 0 then ttl = math.max(ttl, redis.call('PTTL', it.key)) end
      if it.debts and owed(it) > 0 then ttl = ttl + (windows(it, owed(it)) + 1) * length(it) / 1000 end
    end
    redis.call('PEXPIRE', it.key, math.ceil(ttl))
  end
  local status = granted and 1 or (it.fits and 2 or it.status or 0)
  local n = #response
  response[n + 1], response[n + 2], response[n + 3] = status, math.floor(it.e), math.floor(it.u)
  response[n + 4], response[n + 5] = math.max(it.t, it.f), it.g
  response[n + 6], response[n + 7] = math.max(0, math.ceil(it.wait or 0)), it.continues and 1 or 0
  response[n + 8], response[n + 9] = it.d or 0, it.l or 0
end
return response
