-- Watch: registers, or refreshes, a waiter, and tells what already is. Also the waiter's look when
-- a deadline has passed or an event may have been lost. Invariant: a waiter counts until its own
-- registration lease is over, so a dead one never stalls the queue; refreshing it keeps its place.
--
-- A waiter's entry (field w:ACQUISITION):
--     1 deadline, '<d'     9 its length, '<d'     17 '1' if woken and it has not asked since
--     18 order of priority (2^64 - 1 - priority), 20     38 number of registration, 12     50 client,
--     16     66 reservation lease, 16     82 barging ('1'/'0')     83 priority, 20     103 owner
-- Its member of the waiting list, a sorted set, is the order, the number and the acquisition: with 64
-- bytes a short list is still one small block.
--
-- ARGV: 2 a waiter's entry from the client on; '' of a holder   3 order of priority
-- 4 registration lease   5 whose place to take, if anybody's
-- Reply: {1 holds, left} {2 holds and is to yield, grace left or -1, thief's priority, left of the
-- reservation} {3 holds no more}
-- {4 may claim, why} {5 waits, left of what is in the way, '1' if it comes next}
-- An error 'WRONGTYPE waiting list' if its key holds something else; then nothing was changed.
local wish = ARGV[2]
local first = false  -- No waiter comes before it.
local why = freed or 'r'
if at and successor then
  reply = {2, grace_end and grace_end - now or -1, successor_priority, successor_deadline - now}
elseif at then
  reply = {1, deadline - now}
elseif wish == '' then
  reply = {3}
else
  local W = K .. ':waiting'
  local priority = sub(wish, 34, 53)
  local number
  local silent, forgotten = '0', {}
  if waiter and sub(waiter, 83, 102) == priority and struct.unpack('<d', waiter) > now then
    number, silent = sub(waiter, 38, 49), sub(waiter, 17, 17)
  elseif waiter then
    forgotten[1] = sub(waiter, 18, 49) .. acquisition
  end
  local predecessor = ARGV[5]
  if predecessor and predecessor ~= acquisition then
    local old = call('HGET', K, 'w:' .. predecessor)
    if old and struct.unpack('<d', old) > now and sub(old, 83, 102) == priority then
      if number then forgotten[1] = sub(waiter, 18, 49) .. acquisition end
      number, silent = sub(old, 38, 49), '0'
      forgotten[#forgotten + 1] = sub(old, 18, 49) .. predecessor
    else
      predecessor = nil
    end
  else
    predecessor = nil
  end
  if waiting <= 0 then
    waiting, registered, list_kept = 0, number and tonumber(number) or 0, 0
  end
  if not number then
    registered = registered + 1
    number = string.format('%012.0f', registered)
  end
  local place = ARGV[3] .. number

  -- Who waited before the record was lost has to register again.
  if not v[1] then redis.pcall('ZREMRANGEBYRANK', W, 0, -1) end
  -- The first to be written: if it is refused, nothing was changed.
  local added = redis.pcall('ZADD', W, 0, place .. acquisition)
  if type(added) ~= 'number' then
    if string.find(added.err, 'WRONGTYPE', 1, true) then
      return redis.error_reply('WRONGTYPE waiting list')
    end
    return added
  end
  waiting, changed = waiting + added, true
  for i = 1, #forgotten do waiting = waiting - call('ZREM', W, forgotten[i]) end
  if waiting < 1 then waiting = 1 end
  if predecessor then
    call('HDEL', K, 'w:' .. predecessor)
    if not handles and successor == predecessor and nominated == '1' then
      successor, successor_client, successor_owner = acquisition, sub(wish, 1, 16), sub(wish, 54)
      successor_changed = true
    end
  end
  local registration = tonumber(ARGV[4])
  local until_ = now + registration
  -- Spared, as in store.lua, from being said each time.
  if until_ + SLACK > list_kept then
    list_kept = until_ + SLACK + 20000000
    call('PEXPIRE', W, math.ceil((list_kept - now) / 1000) + 1000)
  end
  waiter = struct.pack('<dd', until_, registration) .. silent .. place .. wish

  first = waiting == 1
  while not first do
    local member = call('ZRANGE', W, 0, 0)[1]
    local a = sub(member, 33)
    local entry = a == acquisition and waiter or call('HGET', K, 'w:' .. a)
    local over, lasts = 0, 0
    if entry then over, lasts = struct.unpack('<dd', entry) end
    if over > now then
      first = a == acquisition
      if over > now + lasts then
        redis.pcall('HSET', K, 'w:' .. a, struct.pack('<d', now + lasts) .. sub(entry, 9))
      end
      break
    end
    call('HDEL', K, 'w:' .. a)
    waiting = waiting - call('ZREM', W, member)
  end
  if not handles and not successor then freed = why end
end
