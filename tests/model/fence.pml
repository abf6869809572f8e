/* Fencing tokens that come from clocks, as the Redis backend gives them (S2).
 *
 * The client proposes a token, the server gives max(last + 1, the proposal clamped to its own
 * clock +- SLACK), so that the fence need not be stored for ever: a free record may be evicted,
 * and a server may restart empty. This model looks for the rules under which tokens still grow.
 * One client acquires again and again; which servers, which proposals and when is arbitrary, and
 * it may give up at any point. (Who excludes whom is the matter of the other models.) Time is
 * absolute and bounded by HORIZON. Confirm is the one of quorums: it carries a token from server
 * to server.
 *
 *   SERVERS=1|3      one server, or a quorum of three
 *   SKEW=n           the servers' clocks differ by up to n ticks
 *   SKEWED_FIRST     only the first server's clock is ahead, if any
 *   KEEP_BY_TOKEN    evict a free record once its fence < clock - SLACK (the rule that holds)
 *   KEEP=n           evict a free record n ticks after it became free
 *   RESTART_WAIT=n   servers may lose everything, and grant again n ticks after the recovery record was written
 *   STEPS            the servers' clocks are stepped forward and back, by up to SKEW ticks; nobody proposes tokens
 *   BURST=n          a server gives at most n tokens in a tick
 */
#ifndef SERVERS
#define SERVERS 1
#endif
#ifndef SLACK
#define SLACK 1
#endif
#ifndef SKEW
#define SKEW 0
#endif
#ifndef MAX_LEASE
#define MAX_LEASE 1
#endif
#ifndef BURST
#define BURST 1
#endif
#ifndef HORIZON
#define HORIZON 8
#endif
#define QUORUM (SERVERS / 2 + 1)

byte now;
byte ahead[SERVERS];           /* this server's clock is `now + ahead` */
byte fence[SERVERS];           /* 0 also stands for an evicted record */
bool held[SERVERS];
#ifdef KEEP
byte free_since[SERVERS];
#endif
#ifdef RESTART_WAIT
#define RUNNING 99
byte recovering_since[SERVERS];
#define RUNS(n) (recovering_since[n] == RUNNING)
#else
#define RUNS(n) true
#endif

#ifdef STEPS
/* How far the clock that this server's tokens follow is ahead of its own, and its own when a token was last given. */
byte shift[SERVERS], noted[SERVERS];
#ifdef MUT_TOKENS_GO_BACK
#define NOTE(n) skip
#else
#define NOTE(n) \
  if :: CLOCK(n) <= noted[n] -> shift[n] = shift[n] + noted[n] + 1 - CLOCK(n) :: else fi; \
  noted[n] = CLOCK(n)
#endif
#define TOKEN_CLOCK(n) (CLOCK(n) + shift[n])
#else
#define NOTE(n) skip
#define TOKEN_CLOCK(n) CLOCK(n)
#endif

/* The client's attempt: the token that it knows each server to hold for it, 0 for none, and when that was granted. */
byte known[SERVERS], granted[SERVERS];
bool entered, begun;
byte given[SERVERS];           /* tokens given in this tick */
byte last_entered;             /* history: the largest token that ever entered */

#ifdef SHORTEST                /* the breadth-first search cannot hide scratch variables from the state */
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH byte S2_token_not_larger;
SCRATCH byte token, confirmed, largest;

#define CLOCK(n) (now + ahead[n])

inline find_largest() {
  largest = known[0];
#if SERVERS == 3
  largest = (known[1] > largest -> known[1] : largest);
  largest = (known[2] > largest -> known[2] : largest);
#endif
}

inline evict(n) {
  fence[n] = 0;
#ifdef KEEP
  free_since[n] = 0
#endif
}

#if defined(KEEP)
#define MAY_EVICT(n) (CLOCK(n) >= free_since[n] + KEEP)
#elif defined(KEEP_BY_TOKEN)
#define MAY_EVICT(n) (fence[n] + SLACK < TOKEN_CLOCK(n))
#else
#define MAY_EVICT(n) false
#endif

#define OFFER(n, above_low) \
  :: d_step { !held[n] && RUNS(n) && known[n] == 0 && !entered && now != 0 && given[n] < BURST && above_low <= 2 * SLACK -> \
       begun = 1; given[n]++; \
       NOTE(n); \
       token = (TOKEN_CLOCK(n) + above_low > SLACK + fence[n] + 1 -> TOKEN_CLOCK(n) - SLACK + above_low : fence[n] + 1); \
       printf("server %d, clock %d: grants token %d\n", n, CLOCK(n), token); \
       fence[n] = token; held[n] = 1; known[n] = token; granted[n] = now; token = 0 }

active [SERVERS] proctype Server() {
end:
  do
#ifdef MUT_CLAMPED_FROM_ABOVE_ONLY   /* a proposal of a slow client's clock is taken as it is */
  OFFER(_pid, -CLOCK(_pid))
#endif
  OFFER(_pid, 0)
#ifndef STEPS
  OFFER(_pid, 1)
  OFFER(_pid, 2)
  OFFER(_pid, 3)
  OFFER(_pid, 4)
#endif
  :: d_step { known[_pid] != 0 && held[_pid] && RUNS(_pid) ->
       find_largest();
       printf("server %d: confirms %d\n", _pid, largest);
       fence[_pid] = (largest > fence[_pid] -> largest : fence[_pid]); known[_pid] = largest; largest = 0 }
  /* Nobody counts on the hold: it was released, or its lease is over. */
  :: d_step { held[_pid] && known[_pid] == 0 -> printf("server %d: is free\n", _pid);
       held[_pid] = 0;
#ifdef KEEP
       free_since[_pid] = CLOCK(_pid)
#endif
     }
  :: d_step { fence[_pid] != 0 && !held[_pid] && MAY_EVICT(_pid) ->
       printf("server %d: evicts\n", _pid);
       evict(_pid) }
#ifdef RESTART_WAIT
  :: d_step { RUNS(_pid) && fence[_pid] != 0 -> printf("server %d: loses its data\n", _pid);
       held[_pid] = 0; evict(_pid); recovering_since[_pid] = now }
  :: d_step { !RUNS(_pid) && now >= recovering_since[_pid] + RESTART_WAIT ->
       printf("server %d: has recovered\n", _pid);
       recovering_since[_pid] = RUNNING }
#endif
  od
}

inline give_up() {
  known[0] = 0; granted[0] = 0;
#if SERVERS == 3
  known[1] = 0; granted[1] = 0; known[2] = 0; granted[2] = 0;
#endif
  entered = 0; begun = 0
}

active proctype Client() {
end:
  do
  :: d_step { begun && !entered ->
       find_largest();
       confirmed = (known[0] == largest -> 1 : 0);
#if SERVERS == 3
       confirmed = confirmed + (known[1] == largest -> 1 : 0) + (known[2] == largest -> 1 : 0);
#endif
       if
       :: largest != 0 && confirmed >= QUORUM ->
          printf("client: ENTERS with token %d\n", largest);
          S2_token_not_larger = (largest <= last_entered); assert(!S2_token_not_larger);
          last_entered = largest; entered = 1
       :: else
       fi;
       largest = 0; confirmed = 0 }
  :: d_step { begun -> printf("client: leaves or gives up\n"); give_up() }
  od
}

inline lease_ends(n) {
  if :: known[n] != 0 && now >= granted[n] + MAX_LEASE -> known[n] = 0; granted[n] = 0 :: else fi
}

active proctype Time() {
  /* How far each clock is ahead of the slowest. */
  do
#ifdef SKEWED_FIRST
  :: d_step { ahead[0] == 0 -> ahead[0] = SKEW }
#else
  :: d_step { ahead[0] < SKEW -> ahead[0]++ }
#endif
#if SERVERS == 3 && !defined(SKEWED_FIRST)
  :: d_step { ahead[1] < SKEW -> ahead[1]++ }
  :: d_step { ahead[2] < SKEW -> ahead[2]++ }
#endif
  :: d_step { now = SLACK + 1;
#ifdef RESTART_WAIT
       recovering_since[0] = RUNNING;
#if SERVERS == 3
       recovering_since[1] = RUNNING; recovering_since[2] = RUNNING;
#endif
#endif
     }; break
  od;
  do
  :: d_step { now < HORIZON -> printf("tick\n"); now++;
       given[0] = 0; lease_ends(0);
#if SERVERS == 3
       given[1] = 0; lease_ends(1); given[2] = 0; lease_ends(2);
#endif
     }
#ifdef STEPS
  :: d_step { ahead[0] < SKEW -> printf("server 0: its clock goes forward\n"); ahead[0]++ }
  :: d_step { ahead[0] > 0 -> printf("server 0: its clock goes back\n"); ahead[0]-- }
#endif
  :: now == HORIZON -> break
  od
}
