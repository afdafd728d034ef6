-- Decides a batch of requests on one Redis, atomically: the twin of bucket.rs and decision.rs.
--
-- KEYS[1]    where this sender notes its last batch
-- KEYS[2..]  the distinct buckets of the batch
-- ARGV[1]    the batch's number, as text: the same batch sent twice is decided once
-- ARGV[2]    for how many milliseconds that note is kept
-- ARGV[3]    limits, each as three doubles: tokens per microsecond, burst, in force since
-- ARGV[4]    charges, each as: bucket and limit (two bytes each, counted from 0), kind, hits (a double)
--            The kind is 0 take, 1 peek, 2 give back; + 4 for a quota, + 8 in shadow mode; + 16 on a request's last.
--
-- Returns {the time, what was decided, then for each bucket its record as it was found}. The time is in microseconds, a
-- double as 8 bytes. What was decided is a byte for each request: 'y' admitted, 'n' denied, or 'x' for one that was not
-- decided because a bucket of it cannot be read. A bucket that cannot be read is told as 'x'. The caller works the
-- verdicts out of these by the same arithmetic. If the batch has been decided before, nothing is decided again: the time
-- is followed by what was decided then, with 'a' before it, and by the buckets as they are now.
--
-- Nothing is written before everything is decided, and no write depends on what a key holds: a script that fails half-way
-- would leave its first writes behind. All numbers are IEEE doubles, and the expressions are those of bucket.rs in the
-- same order. Replies travel as bytes, because Redis cuts a Lua number to its whole part.

local call, unpack_, pack = redis.call, struct.unpack, struct.pack
local RECORD, TOKEN_BUCKET, MOST = '<Bddd', 1, 2 ^ 53

local buckets = #KEYS - 1
local limits, charges = #ARGV[3] / 24, #ARGV[4] / 13
if buckets < 1 or limits < 1 or charges < 1 or limits % 1 ~= 0 or charges % 1 ~= 0 then
  return redis.error_reply('ERR weir: a batch whose parts do not fit together')
end

local again
local note = call('GET', KEYS[1])
if note then
  local number, decided = note:match('^(%d+) (%a+)$')
  if number == ARGV[1] then
    again = decided
  elseif number and tonumber(number) > tonumber(ARGV[1]) then
    -- Given up by its sender, who has gone on: nobody waits for it, and its note would hide that of a newer one.
    return redis.error_reply('ERR weir: a batch that comes after a newer one')
  end
end

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Read each bucket once. A key of another type reads as nothing: those that read as nothing must not be there.
local keys = {}
for i = 1, buckets do keys[i] = KEYS[i + 1] end
local found = call('MGET', unpack(keys))
local absent = {}
for i = 1, buckets do
  if not found[i] then absent[#absent + 1] = keys[i] end
end
local foreign = #absent > 0 and call('EXISTS', unpack(absent)) > 0

local used, at, rate, bad, touched = {}, {}, {}, {}, {}
for i = 1, buckets do
  local record = found[i]
  used[i], at[i], rate[i] = 0, 0, 0
  if record then
    local kind
    if #record == 25 then kind, used[i], at[i], rate[i] = unpack_(RECORD, record) end
    -- All that the arithmetic can come to, and no infinity; what is no number compares with nothing.
    if kind ~= TOKEN_BUCKET or not (used[i] >= 0 and used[i] < MOST and at[i] >= 0 and at[i] <= MOST)
      or not (rate[i] >= 0 and rate[i] < MOST) or (used[i] > 0 and rate[i] == 0) then
      bad[i], found[i] = true, 'x'
    end
  elseif foreign and call('EXISTS', keys[i]) == 1 then
    bad[i], found[i] = true, 'x'
  else
    found[i] = ''
  end
end

local function reply(decided)
  local parts = { pack('<d', now), decided }
  for i = 1, buckets do parts[i + 2] = found[i] end
  return parts
end
if again then return reply('a' .. again) end

local limit_rate, limit_burst, limit_since = {}, {}, {}
for i = 1, limits do
  limit_rate[i], limit_burst[i], limit_since[i] = unpack_('<ddd', ARGV[3], (i - 1) * 24 + 1)
end

local function used_at(b, l)
  local u, burst, from = used[b], limit_burst[l], at[b]
  if now <= from then
    if u > burst then u = burst end
    return u
  end
  local change = limit_since[l]
  if change < from then change = from elseif change > now then change = now end
  u = u - rate[b] * (change - from)
  if u < 0 then u = 0 end
  if u > burst then u = burst end
  u = u - limit_rate[l] * (now - change)
  if u < 0 then u = 0 end
  return u
end

local function write(b, l, u)
  used[b], at[b], rate[b], touched[b] = u, now, limit_rate[l], l
end

-- Notes what a denial must not leave unsaid: a clock that stepped back, another rate, a burst that shrank.
local function settle(b, l)
  if now < at[b] or rate[b] ~= limit_rate[l] or used[b] > limit_burst[l] then
    local u = used_at(b, l)
    if u > 0 then write(b, l, u) end
  end
end

-- Takes, looks, or gives back; says whether it fits.
local function take(b, l, kind, hits)
  local u = used_at(b, l)
  if kind == 2 then
    u = u - hits
    if u < 0 then u = 0 end
    write(b, l, u)
    return true
  end
  local need = hits
  if kind == 1 then need = 1 end
  if u + need <= limit_burst[l] then
    if kind == 0 then write(b, l, u + need) end
    return true
  end
  settle(b, l)
  return false
end

local decided = {}
local request = {}
local position = 1
for _ = 1, charges do
  local b, l, kind, hits
  b, l, kind, hits, position = unpack_('<HHBd', ARGV[4], position)
  b, l = b + 1, l + 1
  if b > buckets or l > limits then
    return redis.error_reply('ERR weir: a charge to a bucket or limit that the batch does not name')
  end
  local last = kind >= 16
  if last then kind = kind - 16 end
  local shadow = kind >= 8
  if shadow then kind = kind - 8 end
  local quota = kind >= 4
  if quota then kind = kind - 4 end
  request[#request + 1] = { b, l, kind, hits, shadow, quota }

  if last then
    local unreadable = false
    for i = 1, #request do
      if bad[request[i][1]] then unreadable = true end
    end
    if unreadable then
      decided[#decided + 1] = 'x'
    else
      local before = {}
      local denied, quotas, quotas_over = false, 0, 0
      for i = 1, #request do
        local c = request[i]
        local bucket = c[1]
        if not before[bucket] then before[bucket] = { used[bucket], at[bucket], rate[bucket], touched[bucket] } end
        local fits = take(bucket, c[2], c[3], c[4])
        if not c[5] then
          if c[6] then
            quotas = quotas + 1
            if not fits then quotas_over = quotas_over + 1 end
          elseif not fits then
            denied = true
          end
        end
      end
      if denied or (quotas > 0 and quotas == quotas_over) then
        -- As they were, but for what is given back whatever the answer, and what a denial must not leave unsaid.
        for bucket, was in pairs(before) do
          used[bucket], at[bucket], rate[bucket], touched[bucket] = was[1], was[2], was[3], was[4]
        end
        for i = 1, #request do
          local c = request[i]
          if c[3] == 2 then
            take(c[1], c[2], c[3], c[4])
          else
            settle(c[1], c[2])
          end
        end
        decided[#decided + 1] = 'n'
      else
        decided[#decided + 1] = 'y'
      end
    end
    request = {}
  end
end
if #request > 0 then
  return redis.error_reply('ERR weir: the last request of a batch has no end')
end

-- Write each bucket that changed once, with an expiry when it would be full again; one that is full needs no record.
for b, l in pairs(touched) do
  if used[b] == 0 then
    call('DEL', keys[b])
  else
    local left = math.ceil(used[b] / rate[b] / 1000)
    if left < 1 then left = 1 elseif left > 9007199254740 then left = 9007199254740 end
    call('SET', keys[b], pack(RECORD, TOKEN_BUCKET, used[b], at[b], rate[b]), 'PX', string.format('%d', left))
  end
end

decided = table.concat(decided)
-- A batch that changed nothing may as well be decided again.
if next(touched) then
  call('SET', KEYS[1], ARGV[1] .. ' ' .. decided, 'PX', ARGV[2])
end
return reply(decided)
