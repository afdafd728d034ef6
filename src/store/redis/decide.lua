-- Decides a batch of requests on one Redis, atomically: the twin of bucket.rs and decision.rs.
--
-- KEYS[1]    where this sender notes its last batch
-- KEYS[2..]  the distinct buckets of the batch
-- ARGV[1]    the batch's number, as text: the same batch sent twice is decided once. 0 for one that is not noted: then the
--            buckets begin with KEYS[1]
-- ARGV[2]    for how many milliseconds that note is kept
-- ARGV[3]    limits, each as a kind and four doubles, of which the last two are the burst, and that with the most debt
--            1 token bucket (tokens per microsecond, in force since), 2 fixed window and 3 sliding window (length of what
--            is counted together, how long before the epoch one began), 4 calendar month, 5 calendar year (0, 0)
-- ARGV[4]    charges, each as: bucket and limit (two bytes each, counted from 0), kind, hits (a double)
--            0 take, 1 peek, and what lands whatever the answer: 2 give back, 3 refund, 4 overdraft, 5 add, 6 raise
--            + 8 for a quota, + 16 in shadow mode; + 32 on a request's last
-- ARGV[5]    moments, a double for each charge of kind 3, 5 or 6
--
-- Returns {the time, what was decided, then for each bucket its record as it was found}. The time is in microseconds, a
-- double as 8 bytes. What was decided is a byte for each request: 'y' admitted, 'n' denied, or 'x' for one that was not
-- decided because a bucket of it cannot be read. A bucket that cannot be read is told as 'x'. The caller works the
-- verdicts out of these by the same arithmetic. If the batch has been decided before, nothing is decided again: the time
-- is followed by what was decided then, with 'a' before it, and by the buckets as they are now.
--
-- Nothing is written before everything is decided, and no write depends on what a key holds: a script that fails half-way
-- would leave its first writes behind. All numbers are IEEE doubles, and the expressions are those of bucket.rs in the
-- same order. Replies travel as bytes, because Redis cuts a Lua number to its whole part. Records are as record.rs says.

local call, unpack_, pack, floor, ceil = redis.call, struct.unpack, struct.pack, math.floor, math.ceil
local RECORD, TOKEN_BUCKET, WINDOWS, IN_DEBT, MOST = '<Bddd', 1, 2, 3, 2 ^ 53
-- What is added to the kinds of charges, and what modes begin with.
local QUOTA, SHADOW, LAST = 8, 16, 32
-- The kind of a charge that is taken, enforced, and the only one of its request.
local ALONE = LAST

-- Not looked for among what is global each time.
local keys = KEYS
local number, note_millis, encoded_limits, encoded_charges, encoded_moments = unpack(ARGV)

local first = 1
if number == '0' then first = 0 end
local buckets = #keys - first
local limits, charges = #encoded_limits / 33, #encoded_charges / 13
if buckets < 1 or limits < 1 or charges < 1 or limits % 1 ~= 0 or charges % 1 ~= 0 then
  return redis.error_reply('ERR weir: a batch whose parts do not fit together')
end

local again
local note = first == 1 and call('GET', keys[1])
if note then
  local noted, decided = note:match('^(%d+) (%a+)$')
  if noted == number then
    again = decided
  elseif noted and tonumber(noted) > tonumber(number) then
    -- Given up by its sender, who has gone on: nobody waits for it, and its note would hide that of a newer one.
    return redis.error_reply('ERR weir: a batch that comes after a newer one')
  end
end

local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Read each bucket once.
local found = call('MGET', unpack(keys, first + 1))

-- A token bucket within its burst is three numbers. What else there is of a bucket is in `more`: of windows their counters,
-- the newest first, and `length`, while `at` is when the newest began; of a debt the burst that it is above, `owed`.
-- These tables never change, so that a denied request can put them back.
local used, at, rate, more, bad, touched = {}, {}, {}, {}, {}, {}

-- Of limits. Those without a rate are of windows: what is counted together with this moment began at `slot_start`.
local limit_rate, limit_burst, limit_since, limit_most = {}, {}, {}, {}
local slot_start, slot_length, counters_of
local write

-- What is seldom needed, debts and windows and what lands anyway, is made when it is: most batches are of token buckets
-- only, and each run of a script makes its functions anew.
local read, calendar, used_of_windows, most_of, room_for, add, correct
local function make_the_rest()
  slot_start, slot_length, counters_of = {}, {}, {}

  -- Reads a record that is not of a token bucket within its burst; says whether it is one.
  read = function(i, record)
    local size = #record
    if size < 25 or (size - 1) % 8 ~= 0 then return false end
    local doubles = { unpack_('<B' .. ('d'):rep((size - 1) / 8), record) }
    for j = 2, (size + 7) / 8 do
      if not (doubles[j] >= 0 and doubles[j] <= MOST) then return false end
    end
    if doubles[1] == IN_DEBT and size == 33 then
      used[i], at[i], rate[i], more[i] = doubles[2], doubles[3], doubles[4], { owed = doubles[5] }
      return rate[i] > 0
    end
    local counters = (size - 17) / 8
    if doubles[1] ~= WINDOWS or (counters ~= 1 and counters ~= 9) or doubles[3] < 1 then return false end
    local windows = { length = doubles[3] }
    for j = 1, counters do windows[j] = doubles[j + 3] end
    used[i], at[i], rate[i], more[i] = 0, doubles[2], 0, windows
    return true
  end

  local DAY = 86400000000

  -- Days since the first of the month and of the year, of the day that is so many days after the epoch.
  local function day_of_calendar(days)
    local of_cycle = (days + 719468) % 146097
    local year = floor((of_cycle - floor(of_cycle / 1460) + floor(of_cycle / 36524) - floor(of_cycle / 146096)) / 365)
    local since_march = of_cycle - (365 * year + floor(year / 4) - floor(year / 100))
    local month = floor((5 * since_march + 2) / 153)
    local of_month = since_march - floor((153 * month + 2) / 5)
    if month >= 10 then return of_month, since_march - 306 end
    local leap = year % 4 == 0 and (year % 100 ~= 0 or year == 0)
    return of_month, since_march + 59 + (leap and 1 or 0)
  end

  -- The calendar's month or year of this moment: when it began, and its length.
  calendar = function(longest, which)
    local days = floor(now / DAY)
    local first = days - select(which, day_of_calendar(days))
    local next_one = first + longest
    next_one = next_one - select(which, day_of_calendar(next_one))
    return first * DAY, (next_one - first) * DAY
  end

  -- What is in use of a bucket of windows, or of any under a limit of windows.
  used_of_windows = function(b, l)
    local windows, u = more[b], 0
    if windows and not windows.owed then
      local passed = 0
      if now > at[b] then passed = floor((now - at[b]) / windows.length) end
      for i = 1, #windows - passed do u = u + windows[i] end
      if limit_rate[l] and u > limit_burst[l] then u = limit_burst[l] end
    else
      u = used[b]
      if now > at[b] then
        u = u - rate[b] * (now - at[b])
        if u < 0 then u = 0 end
      end
    end
    return u
  end

  -- The most that may be in use of a token bucket: a debt is owed under the limit that it was made under.
  most_of = function(b, l)
    local debt = more[b]
    if debt and debt.owed == limit_burst[l] and rate[b] == limit_rate[l] then return limit_most[l] end
    return limit_burst[l]
  end

  -- The counters that a limit of windows has of a bucket at this moment, of which so many tokens are in use.
  local function turned(b, l, u)
    local old, n, new = more[b], counters_of[l], { length = slot_length[l] }
    if old and old.length == new.length and #old == n then
      local gone = 0
      if slot_start[l] > at[b] then gone = floor((slot_start[l] - at[b]) / new.length) end
      for i = 1, n do new[i] = i > gone and old[i - gone] or 0 end
    else
      new[1] = u
      for i = 2, n do new[i] = 0 end
    end
    return new
  end

  local function keep(b, l, windows)
    used[b], at[b], rate[b], touched[b], more[b] = 0, slot_start[l], 0, l, windows
  end

  -- Takes so many tokens more than are in use.
  add = function(b, l, u, tokens)
    if limit_rate[l] then return write(b, l, u + tokens) end
    local windows = turned(b, l, u)
    windows[1] = windows[1] + tokens
    keep(b, l, windows)
  end

  -- As many tokens as there is room for, debt included.
  room_for = function(l, u, tokens)
    local room = limit_most[l] - u
    if room < 0 then room = 0 end
    if tokens > room then return room end
    return tokens
  end

  -- Does what is neither taken nor refused: gives back, refunds, adds or raises.
  correct = function(b, l, u, kind, tokens, moment)
    if limit_rate[l] then
      if kind == 2 or kind == 3 then
        u = u - tokens
      elseif kind == 5 then
        u = u + (tokens < 0 and tokens or room_for(l, u, tokens))
      else
        if tokens > limit_most[l] then tokens = limit_most[l] end
        if tokens <= u then return end
        u = tokens
      end
      if u < 0 then u = 0 end
      return write(b, l, u)
    end
    local windows = turned(b, l, u)
    if kind == 2 then
      -- The oldest first.
      for i = #windows, 1, -1 do
        if windows[i] > tokens then
          windows[i] = windows[i] - tokens
          break
        end
        tokens = tokens - windows[i]
        windows[i] = 0
      end
    else
      local i = 1
      if moment < slot_start[l] then i = 1 + ceil((slot_start[l] - moment) / windows.length) end
      local count = windows[i]
      if count then
        if kind == 3 then
          count = count - tokens
        elseif kind == 5 then
          count = count + (tokens < 0 and tokens or room_for(l, u, tokens))
        else
          local room = limit_most[l] - u
          if room < 0 then room = 0 end
          if tokens > count + room then tokens = count + room end
          if tokens > count then count = tokens end
        end
        if count < 0 then count = 0 end
        windows[i] = count
      end
    end
    keep(b, l, windows)
  end
end

-- What is written of buckets that are not in the tables: records, and for how many milliseconds.
local records, lefts = {}, {}

-- How long a record is kept, which has no more to say in so many microseconds.
local function millis(micros)
  local left = ceil(micros / 1000)
  if left > 9007199254740 then return 9007199254740 elseif left >= 1 then return left end
  return 1
end

-- The token bucket that was found, within its burst: tokens in use, when that was, and the rate that it was written under.
-- Nothing of a bucket that is something else, or cannot be read.
local function tokens_of(i)
  local record = records[i] or found[i]
  if record == '' then return 0, 0, 0 end
  if #record ~= 25 then return end
  local kind, u, a, r = unpack_(RECORD, record)
  -- All that the arithmetic can come to, and no infinity; what is no number compares with nothing.
  if kind == TOKEN_BUCKET and u >= 0 and u < MOST and a >= 0 and a <= MOST and r >= 0 and r < MOST and (r > 0 or u == 0) then
    return u, a, r
  end
end

-- Reads the bucket that was found into the tables.
local function load(i)
  local u, a, r = tokens_of(i)
  used[i], at[i], rate[i] = u or 0, a or 0, r or 0
  if not u and not bad[i] then
    if not read then make_the_rest() end
    if not read(i, found[i]) then bad[i], found[i] = true, 'x' end
  end
end

local absent = {}
for i = 1, buckets do
  if not found[i] then
    found[i] = ''
    absent[#absent + 1] = keys[i + first]
  end
end

-- A key of another type reads as nothing: those that read as nothing must not be there.
if absent[1] and call('EXISTS', unpack(absent)) > 0 then
  for i = 1, buckets do
    if found[i] == '' and call('EXISTS', keys[i + first]) == 1 then bad[i], found[i] = true, 'x' end
  end
end

local function reply(decided)
  return { pack('<d', now), decided, unpack(found, 1, buckets) }
end
if again then
  for i = 1, buckets do load(i) end
  return reply('a' .. again)
end

for i = 1, limits do
  local kind, how, since, burst, most = unpack_('<Bdddd', encoded_limits, (i - 1) * 33 + 1)
  limit_burst[i], limit_most[i] = burst, most
  if kind == 1 then
    limit_rate[i], limit_since[i] = how, since
  else
    if not read then make_the_rest() end
    counters_of[i] = kind == 3 and 9 or 1
    if kind == 4 then
      slot_start[i], slot_length[i] = calendar(31, 1)
    elseif kind == 5 then
      slot_start[i], slot_length[i] = calendar(366, 2)
    else
      slot_start[i], slot_length[i] = now - math.fmod(now + since, how), how
    end
  end
end

-- What is in use of a token bucket, of which so much was, at a moment and written under a rate.
local function drained(l, most, u, from, r)
  if now <= from then
    if u > most then u = most end
    return u
  end
  local change = limit_since[l]
  if change < from then change = from elseif change > now then change = now end
  u = u - r * (change - from)
  if u < 0 then u = 0 end
  if u > most then u = most end
  u = u - limit_rate[l] * (now - change)
  if u < 0 then u = 0 end
  return u
end

local function used_at(b, l)
  local most = limit_burst[l]
  if more[b] or not limit_rate[l] then
    if not limit_rate[l] or not more[b].owed then return used_of_windows(b, l) end
    most = most_of(b, l)
  end
  return drained(l, most, used[b], at[b], rate[b])
end

write = function(b, l, u)
  used[b], at[b], rate[b], touched[b] = u, now, limit_rate[l], l
  if u > limit_burst[l] then
    more[b] = { owed = limit_burst[l] }
  elseif more[b] then
    more[b] = nil
  end
end

-- Whether a token bucket says something that is not so any more: its clock stepped back, its rate is another, its burst shrank.
local function is_stale(l, most, u, from, r)
  return now < from or r ~= limit_rate[l] or u > most
end

-- Notes what a denial must not leave unsaid: that, or another algorithm.
local function settle(b, l)
  local stale
  local other = more[b]
  if limit_rate[l] and not (other and other.length) then
    stale = is_stale(l, other and most_of(b, l) or limit_burst[l], used[b], at[b], rate[b])
  elseif not limit_rate[l] and other and other.length then
    stale = now < at[b] or other.length ~= slot_length[l] or #other ~= counters_of[l]
  else
    stale = true
  end
  if stale then
    local u = used_at(b, l)
    if u > 0 then
      if limit_rate[l] then write(b, l, u) else add(b, l, u, 0) end
    end
  end
end

-- Does what the hits say; says whether they fit.
local function take(b, l, kind, hits, moment)
  local u = used_at(b, l)
  if kind >= 2 then
    if not correct then make_the_rest() end
    if kind ~= 4 then
      correct(b, l, u, kind, hits, moment)
      return true
    end
    add(b, l, u, room_for(l, u, hits))
    return u + 1 <= limit_burst[l]
  end
  local need = hits
  if kind == 1 then need = 1 end
  if u + need <= limit_burst[l] then
    if kind == 0 then
      if limit_rate[l] then write(b, l, u + need) else add(b, l, u, need) end
    end
    return true
  end
  settle(b, l)
  return false
end

-- The charges of a request: the bucket and the limit of each, its kind, hits and moment.
local of, by, kinds, amounts, moments = {}, {}, {}, {}, {}

-- Decides the request of so many charges; says which letter it is.
local function decide(n)
  local unreadable = false
  for i = 1, n do
    if not used[of[i]] then load(of[i]) end
    if bad[of[i]] then unreadable = true end
  end
  -- Nothing lands, not even what always does: the caller decides all of it elsewhere, and tells of it later.
  if unreadable then return 'x' end
  local before = {}
  local denied, quotas, quotas_over = false, 0, 0
  for i = 1, n do
    local bucket, kind = of[i], kinds[i]
    -- Of one charge alone nothing has to be put back: what does not fit has changed nothing.
    if n > 1 and not before[bucket] then
      before[bucket] = { used[bucket], at[bucket], rate[bucket], touched[bucket], more[bucket] }
    end
    local fits = take(bucket, by[i], kind % QUOTA, amounts[i], moments[i])
    if kind < SHADOW then
      if kind >= QUOTA then
        quotas = quotas + 1
        if not fits then quotas_over = quotas_over + 1 end
      elseif not fits then
        denied = true
      end
    end
  end
  if not denied and (quotas == 0 or quotas > quotas_over) then return 'y' end
  if n == 1 then return 'n' end
  -- As they were, but for what lands whatever the answer, and what a denial must not leave unsaid.
  for bucket, was in pairs(before) do
    used[bucket], at[bucket], rate[bucket], touched[bucket] = was[1], was[2], was[3], was[4]
    more[bucket] = was[5]
  end
  for i = 1, n do
    if kinds[i] % QUOTA >= 2 then
      take(of[i], by[i], kinds[i] % QUOTA, amounts[i], moments[i])
    else
      settle(of[i], by[i])
    end
  end
  return 'n'
end

local decided, requests = {}, 0
local position, next_moment = 1, 1
local n = 0

-- Most charges are taken, enforced, and the first to their token bucket. A request of such charges alone is decided out of
-- the records, and its buckets go through no table. This is what is in use of them, and which request last named a bucket.
local present, named, plain = {}, {}, true

-- What of a bucket is in use from now on, which the tables do not have.
local function put(b, l, tokens)
  local flow = limit_rate[l]
  records[b], lefts[b] = pack(RECORD, TOKEN_BUCKET, tokens, now, flow), millis(tokens / flow)
end

for _ = 1, charges do
  local b, l, kind, hits, u, from, r
  b, l, kind, hits, position = unpack_('<HHBd', encoded_charges, position)
  b, l = b + 1, l + 1
  if b > buckets or l > limits then
    return redis.error_reply('ERR weir: a charge to a bucket or limit that the batch does not name')
  end
  local last = kind >= LAST
  if plain then
    if (kind == 0 or kind == ALONE) and limit_rate[l] and not used[b] and not records[b] and named[b] ~= requests then
      u, from, r = tokens_of(b)
    end
    if not u then plain = false end
  end
  if u and last and n == 0 then
    local burst = limit_burst[l]
    local tokens = drained(l, burst, u, from, r)
    requests = requests + 1
    if tokens + hits <= burst then
      decided[requests] = 'y'
      put(b, l, tokens + hits)
    else
      decided[requests] = 'n'
      if tokens > 0 and is_stale(l, burst, u, from, r) then put(b, l, tokens) end
    end
  else
    if last then kind = kind - LAST end
    n = n + 1
    of[n], by[n], kinds[n], amounts[n] = b, l, kind, hits
    if u then present[n], named[b] = drained(l, limit_burst[l], u, from, r), requests end
    local what = kind % QUOTA
    if kind >= LAST or what == 3 or what >= 5 then
      if kind >= LAST or what > 6 or #encoded_moments < next_moment + 7 then
        return redis.error_reply('ERR weir: a charge of no kind, or without its moment')
      end
      moments[n], next_moment = unpack_('<d', encoded_moments, next_moment)
    end
    if last then
      local letter
      if plain then
        letter = 'y'
        for i = 1, n do
          if present[i] + amounts[i] > limit_burst[by[i]] then letter = 'n' end
        end
        for i = 1, n do
          local bucket, limit, tokens = of[i], by[i], present[i]
          if letter == 'y' then
            put(bucket, limit, tokens + amounts[i])
          elseif tokens > 0 and is_stale(limit, limit_burst[limit], tokens_of(bucket)) then
            put(bucket, limit, tokens)
          end
        end
      else
        letter = decide(n)
      end
      requests = requests + 1
      decided[requests] = letter
      n = 0
    end
  end
  if last then plain = true end
end
if n > 0 then
  return redis.error_reply('ERR weir: the last request of a batch has no end')
end

-- Write each bucket that changed once, with an expiry when it would be full again; one that is full needs no record.
local written
for b = 1, buckets do
  local record, left = records[b], lefts[b]
  if touched[b] then
    local other = more[b]
    record, left = nil, 0
    if other and other.length then
      -- The newest counter that holds anything is the last to leave.
      for i = 1, #other do
        if other[i] > 0 then
          left = millis(at[b] + (#other + 1 - i) * other.length - now)
          record = pack('<Bdd' .. ('d'):rep(#other), WINDOWS, at[b], other.length, unpack(other))
          break
        end
      end
    elseif used[b] > 0 then
      left = millis(used[b] / rate[b])
      if other then
        record = pack('<Bdddd', IN_DEBT, used[b], at[b], rate[b], other.owed)
      else
        record = pack(RECORD, TOKEN_BUCKET, used[b], at[b], rate[b])
      end
    end
  end
  if record then
    -- As a whole number's text: of a double, Redis goes through all the digits that there might be. `%d` takes what is a
    -- `long` in C, which may have 32 bits.
    left = (left < 2 ^ 31 and '%d' or '%.0f'):format(left)
    call('SET', keys[b + first], record, 'PX', left)
    written = true
  elseif left then
    call('DEL', keys[b + first])
    written = true
  end
end

decided = table.concat(decided)
-- A batch that changed nothing may as well be decided again.
if first == 1 and written then
  call('SET', keys[1], number .. ' ' .. decided, 'PX', note_millis)
end
return reply(decided)
