-- The time of every step: the server's own clock, in microseconds, exact in a double until the year
-- 2255. Clients' clocks play no part.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
