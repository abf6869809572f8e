/* Liveness of one record: L1, L2 and the second half of S4.
 *
 * Requests are atomic here (a lost one is a step that does nothing); safety.pml has the bad
 * network. The others are hostile: they take the lock whenever they can, extend it at will,
 * ignore every notification, let releases be lost and die at any moment.
 *
 *   default        actor ASKER keeps asking and polls once a tick; checks one of the LTL formulas below
 *   WAIT_BOUND=n   safety instead: no wait of ASKER is longer than n ticks
 *   PASSED_BOUND=n safety instead: at most n holds of others begin while ASKER is registered
 *   GONE_BOUND=n   safety instead: ASKER waits at most n ticks once the others are gone
 *   ORDERED        the server seats waiters, also those that never come to claim
 *   STEPS_BACK     the server's clock may be stepped back, STEPS times
 *   FAILED_THIEF   S4: a holder that renews once a tick never loses its lease to one thief that reserves and dies
 */
#include "record.pml"

#define IDLE 0
#define WAITING 1
#define INSIDE 2
#define GONE 3
#ifndef ASKER
#define ASKER 2
#endif
#ifndef LOST_POLLS
#define LOST_POLLS 2
#endif
byte state[ACTORS], left[ACTORS];   /* `left`: ticks until `valid until` while inside */
byte lost_polls;
bool polled = 1;
#ifdef ORDERED
byte registered[ACTORS];            /* 0, or the place in the order of registration among those that asked in vain */
#define REGISTERED (registered[0] != 0) + (registered[1] != 0) + (registered[2] != 0)
inline unregister(i) {
  if :: registered[0] > registered[i] && registered[i] != 0 -> registered[0]-- :: else fi;
  if :: registered[1] > registered[i] && registered[i] != 0 -> registered[1]-- :: else fi;
  if :: registered[2] > registered[i] && registered[i] != 0 -> registered[2]-- :: else fi;
  registered[i] = 0
}
/* The better of two waiters: by priority, then by registration. */
#ifdef MUT_SEATS_THE_LAST
#define BEFORE(i, j) (registered[j] == 0 || PRIO(i) > PRIO(j) || (PRIO(i) == PRIO(j) && registered[i] >= registered[j]))
#else
#define BEFORE(i, j) (registered[j] == 0 || PRIO(i) > PRIO(j) || (PRIO(i) == PRIO(j) && registered[i] <= registered[j]))
#endif
#define BEST(i) (registered[i] != 0 && BEFORE(i, 0) && BEFORE(i, 1) && BEFORE(i, 2))
#endif
#ifdef WAIT_BOUND
byte waited;
SCRATCH byte L2_waits_too_long;
#endif
SCRATCH byte S4_holder_lost_its_lease;
#ifdef PASSED_BOUND
byte passed;
SCRATCH byte holder_before, L1_passed_over;
#endif
#ifdef GONE_BOUND
byte alone;
SCRATCH byte L1_waits_too_long;
#endif

/* The end of every step on the record: when nobody holds or has reserved, the best of the
 * registered waiters becomes the successor, alive or not. */
inline settle() {
#ifdef ORDERED
  if
  :: h_owner == 0 && s_id == 0 && BEST(0) -> seat_waiter(LIVE(0)); unregister(0)
  :: h_owner == 0 && s_id == 0 && BEST(1) -> seat_waiter(LIVE(1)); unregister(1)
  :: h_owner == 0 && s_id == 0 && BEST(2) -> seat_waiter(LIVE(2)); unregister(2)
  :: else
  fi
#else
  skip
#endif
}

#define others_gone (state[(ASKER + 1) % ACTORS] == GONE && state[(ASKER + 2) % ACTORS] == GONE)

#define MUST_LEAVE(i) (state[i] == INSIDE && left[i] == 0)

#ifndef PREEMPTIBLE_HOLDERS
#define PREEMPTIBLE_HOLDERS 1
#endif
#ifdef FORCED
#define ASKED_GRACE GRACE
#else
#define ASKED_GRACE 0
#endif

inline ask(i) {
#ifdef PASSED_BOUND
  holder_before = h_owner;
#endif
  obtain(LIVE(i), PREEMPTIBLE_HOLDERS, ANY, ASKED_GRACE);
  if
  :: answer == GRANTED && answer_left > MARGIN -> state[i] = INSIDE; left[i] = answer_left - MARGIN
  :: else -> state[i] = WAITING
  fi
#ifdef PASSED_BOUND
  ;
  if
  :: registered[ASKER] == 0 || i == ASKER -> passed = 0
  :: registered[ASKER] != 0 && i != ASKER && holder_before == 0 && h_owner != 0 ->
     passed++; CHECK(L1_passed_over, passed > PASSED_BOUND)
  :: else
  fi;
  holder_before = 0
#endif
#ifdef ORDERED
  ;
  if
  :: state[i] == INSIDE -> unregister(i)
  :: state[i] == WAITING && registered[i] == 0 -> registered[i] = 1 + REGISTERED
  :: else
  fi
#endif
}

inline renew(i, length) {
  extend(LIVE(i), length);
  if :: answer == GRANTED && length > MARGIN && length - MARGIN > left[i] -> left[i] = length - MARGIN :: else fi
}

proctype Hostile(byte i) {
  do
  :: d_step { state[i] != INSIDE && state[i] != GONE -> printf("actor %d: asks\n", i); ask(i) }
  :: d_step { state[i] == INSIDE && left[i] > 0 ->
       printf("actor %d: extends\n", i); renew(i, LEASE) }
  :: d_step { state[i] == INSIDE && left[i] > 0 ->
       printf("actor %d: extends a little\n", i); renew(i, 1) }
  :: d_step { state[i] == INSIDE ->
       printf("actor %d: leaves\n", i); state[i] = IDLE; left[i] = 0; release(LIVE(i)); settle() }
  :: d_step { state[i] == INSIDE ->
       printf("actor %d: leaves, release lost\n", i); state[i] = IDLE; left[i] = 0 }
  :: d_step { state[i] == WAITING ->
       printf("actor %d: gives up\n", i); state[i] = IDLE; release(LIVE(i));
#ifdef ORDERED
       unregister(i);
#endif
       settle() }
#ifdef ORDERED
  :: d_step { state[i] == WAITING ->
       printf("actor %d: gives up, and nobody hears it\n", i); state[i] = IDLE }
#endif
  /* It stays as a process that can do nothing: SPIN's fairness counts processes. */
  :: d_step { state[i] != GONE -> printf("actor %d: dies\n", i); state[i] = GONE; left[i] = 0 }
  od
}

proctype Asker() {
  state[ASKER] = WAITING; polled = 0;
  do
  :: d_step { state[ASKER] == WAITING -> printf("asker: polls\n"); polled = 1; ask(ASKER) }
  :: d_step { state[ASKER] == WAITING && lost_polls < LOST_POLLS ->
       printf("asker: poll lost\n"); lost_polls++; polled = 1 }
  :: d_step { state[ASKER] == INSIDE ->
       printf("asker: leaves\n");
       state[ASKER] = IDLE; left[ASKER] = 0; release(LIVE(ASKER)); settle() }
  :: d_step { state[ASKER] == IDLE -> printf("asker: begins\n"); state[ASKER] = WAITING; polled = 0;
#ifdef WAIT_BOUND
       waited = 0
#endif
     }
  od
}

#ifdef MUT_SLOW_POLLING
#define POLLED true
#else
#define POLLED (state[ASKER] != WAITING || polled)
#endif

inline actor_tick(i) {
  if :: left[i] > 0 -> left[i]-- :: else fi
}

proctype Clock() {
  do
  :: d_step { !MUST_LEAVE(0) && !MUST_LEAVE(1) && !MUST_LEAVE(2) && POLLED -> printf("tick\n");
#ifdef WAIT_BOUND
       if
       :: state[ASKER] == WAITING -> waited++; CHECK(L2_waits_too_long, waited > WAIT_BOUND)
       :: else
       fi;
#endif
#ifdef GONE_BOUND
       if
       :: state[ASKER] == WAITING && others_gone -> alone++; CHECK(L1_waits_too_long, alone > GONE_BOUND)
       :: else -> alone = 0
       fi;
#endif
       record_tick(); settle(); polled = 0;
       actor_tick(0); actor_tick(1); actor_tick(2) }
#ifdef STEPS_BACK
  :: d_step { CAN_STEP_BACK -> printf("server: its clock goes back\n"); step_back(BACK) }
#endif
  od
}

#ifdef FAILED_THIEF
/* The holder renews once before each tick. The thief reserves at any time, polls for at most
 * THIEF_TICKS ticks, and is gone without a word. */
#ifndef THIEF_TICKS
#define THIEF_TICKS 1
#endif
byte thief_ticks;
bool renewed;
proctype Holder() {
  d_step { ask(0); assert(state[0] == INSIDE) };
  do
  :: d_step { !renewed && left[0] > 0 -> printf("holder: renews\n"); renew(0, LEASE); renewed = 1 }
  od
}
proctype Thief() {
  do
  :: d_step { state[0] == INSIDE && thief_ticks < THIEF_TICKS ->
       printf("thief: reserves\n"); obtain(LIVE(1), 1, ANY, 0) }
  :: break
  od
}
proctype ThiefClock() {
  do
  :: d_step { state[0] == INSIDE && renewed -> printf("tick\n");
       if :: s_id != 0 -> thief_ticks++ :: else fi;
       record_tick(); renewed = 0; actor_tick(0);
       CHECK(S4_holder_lost_its_lease, left[0] == 0 || h_owner == 0) }
  od
}
init { atomic { run Holder(); run Thief(); run ThiefClock() } }
#else
init {
  atomic {
    run Asker(); run Clock();
#if ASKER != 0
    run Hostile(0);
#endif
#if ASKER != 1
    run Hostile(1);
#endif
#if ASKER != 2
    run Hostile(2);
#endif
  }
}

#define asking (state[ASKER] == WAITING)
#define entered (state[ASKER] == INSIDE)
#define somebody_inside (state[0] == INSIDE || state[1] == INSIDE || state[2] == INSIDE)
#if !defined(WAIT_BOUND) && !defined(PASSED_BOUND) && !defined(GONE_BOUND)
/* L1: once the others are gone, with or without having left, the asker enters, whatever its priority. */
ltl l1 { (<> others_gone) -> [] (asking -> <> entered) }
/* L1, without anybody's death: somebody enters again and again. */
ltl l1_somebody { [] (asking -> <> somebody_inside) }
#ifdef ORDERED
/* What order adds among equals: if holds end again and again, the asker itself enters. */
ltl l1_in_order { ([] <> (h_owner == 0)) -> [] (asking -> <> entered) }
#endif
/* L2: the highest priority enters, whatever the others do, unless their hold cannot be preempted. */
ltl l2 { [] (asking -> <> entered) }
#endif
#endif
