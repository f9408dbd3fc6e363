-- Decides limits that several gateways share: one call for all of a request's limits, or for a batch of leases.
--
-- KEYS: one hash per counter, all in one slot. Fields: u (end of the window, or the theoretical arrival time),
-- e (generation: changes when the counter begins anew), t (granted to all gateways), f (a lower bound of t after the
-- server has lost data), x (when the first lease expires), of a window with debts d (what the next ones owe) and l (the
-- limit that it exceeds), of a rate i (the time per request by which u is charged), and one field per gateway:
-- "granted sequence", with a lease
-- "granted sequence used expiry", for slots "granted sequence expiry". A lease that its gateway does not renew expires:
-- of what was granted, its gateway keeps what it has reported as used.
-- Amounts of a gateway are absolute: a repeated message changes nothing, and a lost response is made up for by the next.
-- Times are microseconds since BASE by this server's clock, so that they and every amount are exact in a double.
--
-- ARGV: the gateway's id, "all" or "each", the gateway's time if this server does not tell its own; then per key the
-- fields of `Message`. Returns the time, and per key: status, generation, until, total, granted, wait.
local BASE, FIELDS, MAX_OWED_WINDOWS = 1700000000000000, 20, 400
local me, all = ARGV[1], ARGV[2] == 'all'
local clock = redis.pcall('TIME')
local now = clock.err and tonumber(ARGV[3]) or clock[1] * 1000000 + clock[2] - BASE

local function whole(number) return string.format('%.0f', number) end
local function fine(number) return string.format('%.17g', number) end

local function read(i)
  local a = 3 + (i - 1) * FIELDS
  local function number(n) return tonumber(ARGV[a + n]) end
  local flags = ARGV[a + 4]
  return {
    key = KEYS[i], kind = ARGV[a + 1], field = me .. ':' .. ARGV[a + 2], seq = number(3),
    ask = flags:find('a', 1, true), lower = flags:find('l', 1, true), close = flags:find('x', 1, true),
    open = flags:find('o', 1, true), reset = flags:find('r', 1, true),
    debts = flags:find('d', 1, true), dry = flags:find('n', 1, true),
    limit = number(5), one = number(6), two = number(7), three = number(8),
    used = number(9), pending = number(10), mine = number(11), target = number(12), shares = number(13),
    gen = number(14), seen = number(15), seen_total = number(16), lifetime = number(17),
    excess = number(18), excess_limit = number(19), cost = number(20),
  }
end

local function load(it)
  local h = redis.call('HMGET', it.key, 'u', 'e', 't', 'f', 'x', it.field, 'd', 'l', 'i')
  it.u, it.e, it.t, it.f = tonumber(h[1]), tonumber(h[2]), tonumber(h[3]) or 0, tonumber(h[4]) or 0
  it.x = tonumber(h[5])
  if it.x == 0 then it.x = nil end
  it.d, it.l, it.interval = tonumber(h[7]), tonumber(h[8]), tonumber(h[9])
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
    if it.seen > now and it.seen <= now + it.three then
      -- The server has lost a window that a gateway remembers.
      it.u, it.e = it.seen, it.gen ~= 0 and it.gen or now
    else
      it.u, it.e = ends, now
    end
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
  local applies = it.gen == it.e or (it.gen == 0 and it.seen > now)
  if not applies then it.used, it.mine = 0, 0 end
  local g = it.g or 0
  if it.seq > it.last and g < it.mine then
    -- The server has lost what it had granted.
    it.t, it.f, it.changed = it.t + it.mine - g, math.max(it.f, it.seen_total), true
    g = it.mine
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
  local known = it.e ~= nil
  it.u, it.e = it.u or now, it.e or (it.gen ~= 0 and it.gen or now)
  if it.interval and it.interval ~= it.two and it.u > now then
    -- Another rate has charged it, of another plan or of an earlier configuration: at this one as many requests are used.
    it.u, it.changed = now + (it.u - now) * it.two / it.interval, true
  end
  it.u = it.u - expire(it) * it.two
  if not it.g then
    if it.gen ~= 0 and (not known or it.gen == it.e) then
      -- The server has lost what the gateway remembers.
      it.u, it.changed = math.max(it.u, it.seen), true
    end
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
  local h = redis.call('HGETALL', it.key)
  it.u, it.e, it.t, it.f, it.g, it.last, it.dead = now, 1, 0, 0, 0, 0, {}
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

local items, admitted = {}, true
for i = 1, #KEYS do
  local it = read(i)
  if it.reset then
    load(it)
    redis.call('DEL', it.key)
    if it.u then redis.call('HSET', it.key, 'u', fine(it.kind == 'w' and it.u or now), 'e', whole(now), 't', '0', 'f', '0') end
    if it.u then redis.call('PEXPIRE', it.key, math.ceil(math.max(it.u - now, 0) / 1000) + 60000) end
  end
  if it.kind == 'w' then window(it) elseif it.kind == 'g' then rate(it) else slots(it) end
  if it.reset and it.kind ~= 'c' then it.changed = true end
  -- Below zero, the lease covers the request; its caller's limit may be smaller than the one that the lease was granted by.
  local must = it.used + it.pending - it.g
  it.need = it.ask and math.max(0, must) or 0
  if it.open then must = math.min(must, 1) end
  it.fits = not it.ask or it.pending == 0 or must <= it.room
  if it.kind == 'w' and not it.fits and it.debts then
    it.wait = it.wait + math.max(0, windows(it, owed(it) + math.min(must, it.limit)) - 1) * length(it)
  end
  if it.kind == 'g' and not it.fits then it.wait = math.max(it.u, now) - now + must * it.two - it.one end
  admitted = admitted and (it.fits or it.dry)
  items[i] = it
end

local response = {math.floor(now)}
for i, it in ipairs(items) do
  local granted = it.fits and (admitted or not all)
  if granted then
    -- A lease that does not cover a request keeps others from what is left.
    local free = it.g + it.need - it.used - it.pending
    local extra = math.min(it.target - free, math.floor((it.room - it.need) / it.shares))
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
    it.g, it.t, it.f, it.changed = keeps, it.t - cut, math.max(0, it.f - cut), true
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
        'x', whole(it.x or 0), it.field, own)
      if it.debts then redis.call('HSET', it.key, 'd', whole(it.d or 0), 'l', whole(it.l or it.limit)) end
      if it.kind == 'g' then redis.call('HSET', it.key, 'i', fine(it.two)) end
      if close then redis.call('HDEL', it.key, it.field) end
      ttl = math.max(it.u - now, 0) / 1000 + (it.kind == 'w' and 1000 or 10000)
      if it.debts and owed(it) > 0 then ttl = ttl + (windows(it, owed(it)) + 1) * length(it) / 1000 end
    end
    redis.call('PEXPIRE', it.key, math.ceil(ttl))
  end
  local status = granted and 1 or (it.fits and 2 or 0)
  local n = #response
  response[n + 1], response[n + 2], response[n + 3] = status, math.floor(it.e), math.floor(it.u)
  response[n + 4], response[n + 5] = math.max(it.t, it.f), it.g
  response[n + 6] = math.max(0, math.ceil(it.wait or 0))
end
return response
