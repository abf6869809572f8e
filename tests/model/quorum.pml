/* The protocol on three independent servers: S1 and S2 with a majority of two.
 *
 * What a client knows is `known[n]`: the token that server n named for its hold there, as long as
 * the lease there is live by the client's own reckoning, else 0. t is the largest of them; a
 * server whose `known` equals t has confirmed it. The client enters with a majority of such
 * servers, and is out once it counts on fewer than a majority.
 *
 * Time is abstract: a server keeps a hold as long as anybody counts on it there, since the client
 * stops before the server does (safety.pml), and may drop it at any moment from then on. That also
 * covers releases that are late or lost. A client may leave, give up or crash at any moment and
 * begins anew with a fresh acquisition, and requests of its old ones still arrive (`late Obtain`).
 * Reservations are left out, since all they do here is to say no. Tokens grow by any step, as with
 * clamped proposals, up to MAX_TOKEN.
 *
 * A server that lost its data grants nothing until no lease from before is live. From then on,
 * until its clock has passed every token that was given, or somebody has written a token there, it
 * grants without a fence. It says so of every such hold, also of one that lasts for longer than
 * that, until a token is confirmed there. It is the client that makes up for it: it counts such a
 * grant only when a majority of the others, which have their fences, has answered a question asked
 * after that grant, and then with a token above all that they said.
 *
 * A holder that is inside obtains again on a server that was away (RETURNS). The server may have a
 * token of its own, smaller or larger than the holder's, which does not change; the holder counts
 * on the server once that has answered Confirm(t), Confirmed or Raise. So t stays known where
 * servers forget (FORGETS): while a holder counts on a majority, which therefore keep its record,
 * the others may drop theirs, fence and all. (Not for several handles of one owner, nor with
 * force: there the holder that keeps the records need not be the last that entered.)
 *
 * Switches: SHARED_OWNER (clients 1 and 2 are handles of one owner), ANONYMOUS, FORCED (forced
 * hand-over by a higher priority at any time), PAUSES (clients stay inside when their leases are
 * over), RETURNS, FORGETS, LOSSES=n (so many times a server loses its data), ACTIVE=n (so many
 * clients do anything but send late requests), NO_LATE_OBTAIN, and the MUT_... ones.
 */
#define CLIENTS 3
#define SERVERS 3
#ifndef ACTIVE
#define ACTIVE CLIENTS
#endif
#ifndef MAX_TOKEN
#define MAX_TOKEN 3
#endif
#ifndef LOSSES
#define LOSSES 0
#endif
#ifdef SHARED_OWNER
#define OWNER(i) ((i) == 2 -> 1 : (i))
#else
#define OWNER(i) (i)
#endif
#define BIT(i) (1 << (i))

/* The servers. */
byte fence[SERVERS];
byte h_owner[SERVERS];         /* 0: no holder; else the owner + 1 */
byte h_ids[SERVERS];           /* which clients' present acquisitions are handles of the hold */
byte h_token[SERVERS];
#if LOSSES > 0
#define RUNNING 0
#define LOST 1                 /* waits until max_lease is over since the recovery record */
#define FENCELESS 2            /* grants without a fence */
byte phase[SERVERS];
bit h_fenceless[SERVERS];      /* the hold was granted so, and no token was confirmed since */
byte losses;
#define RUNS(n) (phase[n] == RUNNING)
#define ANSWERS(n) (phase[n] != LOST)
#else
#define RUNS(n) true
#define ANSWERS(n) true
#endif

/* The clients. */
typedef Knowledge { byte at[SERVERS] };
Knowledge known[CLIENTS];
#define IDLE 0
#define TRYING 1
#define INSIDE 2
byte state[CLIENTS];
#if LOSSES > 0
/* Of the present attempt: servers that granted and said that their fence is lost; servers that were
 * read since; and the smallest token above all that they said. */
byte fenceless[CLIENTS], was_read[CLIENTS], above[CLIENTS];
#define FORGET_READING(i) was_read[i] = 0; above[i] = 0
/* A majority of the others: of three servers, both. */
#ifdef MUT_FENCE_READ_FROM_ONE
#define READ_ENOUGH(i) (was_read[i] != 0)
#else
#define READ_ENOUGH(i) (was_read[i] == 3 || was_read[i] == 5 || was_read[i] == 6)
#endif
#ifdef MUT_ACTS_WITHOUT_READING_BACK
#define MADE_UP(i, n) true
#else
#define MADE_UP(i, n) (!(fenceless[i] & BIT(n)) || READ_ENOUGH(i))
#endif
#define WHAT_WAS_READ(i) (READ_ENOUGH(i) -> above[i] : 0)
#ifdef MUT_FENCELESS_HOLD_FORGOTTEN
#define SAYS_FENCELESS(n) (phase[n] == FENCELESS)
#else
#define SAYS_FENCELESS(n) h_fenceless[n]
#endif
#ifdef MUT_FENCE_READ_BEFORE_THE_GRANT
#define NOTE_PHASE(i, n) \
  if :: SAYS_FENCELESS(n) -> fenceless[i] = fenceless[i] | BIT(n); \
        was_read[i] = was_read[i] & ~BIT(n) :: else fi
#define MAY_READ(i, m) (RUNS(m) && !(was_read[i] & BIT(m)))
#else
#define NOTE_PHASE(i, n) \
  if :: SAYS_FENCELESS(n) -> fenceless[i] = fenceless[i] | BIT(n); FORGET_READING(i) :: else fi
#define MAY_READ(i, m) (RUNS(m) && fenceless[i] != 0 && !(fenceless[i] & BIT(m)) && !(was_read[i] & BIT(m)))
#endif
#define NOTE_END(i, n) fenceless[i] = fenceless[i] & ~BIT(n); \
  if :: fenceless[i] == 0 -> FORGET_READING(i) :: else fi
#else
#define MADE_UP(i, n) true
#define WHAT_WAS_READ(i) 0
#define NOTE_PHASE(i, n) skip
#define NOTE_END(i, n) skip
#endif

#ifdef RETURNS
/* Inside: the token it entered with, and the servers that have granted again and not yet confirmed
 * it. */
byte token[CLIENTS], back[CLIENTS];
#endif

/* History: the largest token that entered and its owner + 1, and what it was when an attempt began. */
byte last_token, last_owner;
#if defined(SHARED_OWNER) || defined(FORCED)
byte base_token[CLIENTS];
#endif
#ifdef FORCED
byte owner_of_token[MAX_TOKEN + 1];
#endif

#ifdef SHORTEST
#define SCRATCH
#else
#define SCRATCH hidden
#endif
SCRATCH byte S1_two_owners_inside, S2_token_not_larger, S2_token_of_two_owners, entered;
#define CHECK(flag, broken) flag = (broken); assert(!flag)

#define COUNTS(i, n) (known[i].at[n] != 0)
#define ANYBODY_COUNTS(n) (COUNTS(0, n) || COUNTS(1, n) || COUNTS(2, n))
#define MAJORITY(i) ((COUNTS(i, 0) && COUNTS(i, 1)) || (COUNTS(i, 0) && COUNTS(i, 2)) || (COUNTS(i, 1) && COUNTS(i, 2)))
#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define TOKEN(i, n) (MADE_UP(i, n) -> known[i].at[n] : 0)
#define LARGEST(i) MAX(WHAT_WAS_READ(i), MAX(TOKEN(i, 0), MAX(TOKEN(i, 1), TOKEN(i, 2))))
#define AGREED2(i, a, b) (TOKEN(i, a) == TOKEN(i, b) && TOKEN(i, a) == LARGEST(i))
#ifdef MUT_NO_CONFIRMATION
#define AGREED(i) MAJORITY(i)
#else
#define AGREED(i) (LARGEST(i) != 0 && (AGREED2(i, 0, 1) || AGREED2(i, 0, 2) || AGREED2(i, 1, 2)))
#endif

#if LOSSES > 0
#define SET_FENCELESS(n, value) h_fenceless[n] = (value)
#else
#define SET_FENCELESS(n, value) skip
#endif
inline clear_hold(n) { h_owner[n] = 0; h_ids[n] = 0; h_token[n] = 0; SET_FENCELESS(n, 0) }

/* Another owner's hold is in the way, and this client may force it out. */
#if defined(FORCED) || defined(MUT_THIEF_OVERWRITES)
#define FORCES(i, n) (h_owner[n] != 0 && OWNER(i) + 1 > h_owner[n])
#else
#define FORCES(i, n) false
#endif
#ifdef ANONYMOUS
#define SAME_OWNER(i, n) (h_ids[n] & BIT(i))
#else
#define SAME_OWNER(i, n) (h_owner[n] == OWNER(i) + 1)
#endif

#define GRANT(i, n, token, ids) \
  fence[n] = token; h_token[n] = fence[n]; h_owner[n] = OWNER(i) + 1; h_ids[n] = ids; \
  SET_FENCELESS(n, phase[n] == FENCELESS)

/* A new hold with the token fence + step. */
#define OBTAIN(i, n, step) \
  :: d_step { state[i] == TRYING && !COUNTS(i, n) && ANSWERS(n) && (h_owner[n] == 0 || (FORCES(i, n) && !SAME_OWNER(i, n))) && \
       fence[n] + step <= MAX_TOKEN -> \
       printf("server %d: grants client %d token %d\n", n, i, fence[n] + step); \
       GRANT(i, n, fence[n] + step, BIT(i)); known[i].at[n] = h_token[n]; NOTE_PHASE(i, n) }

/* Confirm answers Confirmed, after raising the hold's token and the fence, or Raise with the own,
 * larger token. Either way the client then knows the hold's token. */
#if defined(MUT_CONFIRM_WITHOUT_COMPARING)      /* neither the tokens nor whether the lease is still live */
#define MAY_CONFIRM(i, n) (LARGEST(i) != 0)
#define CONFIRM(i, n) fence[n] = MAX(fence[n], LARGEST(i)); h_token[n] = MAX(h_token[n], LARGEST(i))
#define CONFIRMED(i, n) LARGEST(i)
#elif defined(MUT_CONFIRM_LEAVES_THE_FENCE)
#define MAY_CONFIRM(i, n) COUNTS(i, n)
#define CONFIRM(i, n) h_token[n] = MAX(h_token[n], LARGEST(i))
#define CONFIRMED(i, n) h_token[n]
#else
#define MAY_CONFIRM(i, n) (COUNTS(i, n) && MADE_UP(i, n))
#define CONFIRM(i, n) h_token[n] = MAX(h_token[n], LARGEST(i)); fence[n] = MAX(fence[n], h_token[n]); \
  SET_FENCELESS(n, 0)
#define CONFIRMED(i, n) h_token[n]
#endif

#if LOSSES > 0
/* An Obtain repeated, whose answer says the fence: by the own token, or by what it says if another
 * holds. (If nobody does, it is a grant first.) */
#define READ(i, n) \
  :: d_step { state[i] == TRYING && MAY_READ(i, n) && SAME_OWNER(i, n) && !h_fenceless[n] -> \
       printf("client %d: reads the fence of server %d, where it has %d\n", i, n, h_token[n]); \
       h_ids[n] = h_ids[n] | BIT(i); known[i].at[n] = h_token[n]; \
       was_read[i] = was_read[i] | BIT(n); above[i] = MAX(above[i], h_token[n]) } \
  :: d_step { state[i] == TRYING && MAY_READ(i, n) && h_owner[n] != 0 && !SAME_OWNER(i, n) && \
       fence[n] < MAX_TOKEN -> \
       printf("client %d: reads the fence of server %d, which is %d\n", i, n, fence[n]); \
       was_read[i] = was_read[i] | BIT(n); above[i] = MAX(above[i], fence[n] + 1) }
/* A server may take its fence for known from then on. */
#define CONFIRM_MENDS(i, n) \
  :: d_step { state[i] == TRYING && phase[n] == FENCELESS && (h_ids[n] & BIT(i)) && MAY_CONFIRM(i, n) -> \
       printf("server %d: client %d confirms %d, which mends the fence\n", n, i, LARGEST(i)); \
       CONFIRM(i, n); known[i].at[n] = CONFIRMED(i, n); phase[n] = RUNNING }
#else
#define READ(i, n)
#define CONFIRM_MENDS(i, n)
#endif

#ifdef RETURNS
#if LOSSES > 0
#define MEND(n) if :: phase[n] == FENCELESS -> phase[n] = RUNNING :: else fi
#else
#define MEND(n) skip
#endif
#ifdef MUT_COUNTED_WITHOUT_CONFIRMATION
#define BACK(i, n) known[i].at[n] = 1
#else
#define BACK(i, n) back[i] = back[i] | BIT(n)
#endif
/* The answer counts only if the hold is live when it comes. */
#ifdef MUT_RETURNS_AFTER_ITS_LOSS
#define MAY_RETURN(i) true
#else
#define MAY_RETURN(i) MAJORITY(i)
#endif
#define OBTAIN_AGAIN(i, n, step) \
  :: d_step { state[i] == INSIDE && MAY_RETURN(i) && !COUNTS(i, n) && !(back[i] & BIT(n)) && ANSWERS(n) && \
       h_owner[n] == 0 && fence[n] + step <= MAX_TOKEN -> \
       printf("server %d: grants client %d again, with token %d\n", n, i, fence[n] + step); \
       GRANT(i, n, fence[n] + step, BIT(i)); BACK(i, n) }
#define RETURN(i, n) \
  OBTAIN_AGAIN(i, n, 1) \
  OBTAIN_AGAIN(i, n, 2) \
  :: d_step { state[i] == INSIDE && MAY_RETURN(i) && !COUNTS(i, n) && !(back[i] & BIT(n)) && ANSWERS(n) && \
       SAME_OWNER(i, n) -> \
       printf("server %d: client %d re-enters again, with token %d\n", n, i, h_token[n]); \
       h_ids[n] = h_ids[n] | BIT(i); BACK(i, n) } \
  :: d_step { state[i] == INSIDE && (back[i] & BIT(n)) && (h_ids[n] & BIT(i)) -> \
       printf("server %d: client %d confirms %d again, where it has %d\n", n, i, token[i], h_token[n]); \
       h_token[n] = MAX(h_token[n], token[i]); fence[n] = MAX(fence[n], h_token[n]); \
       SET_FENCELESS(n, 0); MEND(n); known[i].at[n] = 1; back[i] = back[i] & ~BIT(n) } \
  :: d_step { (back[i] & BIT(n)) -> printf("client %d: does not return to server %d\n", i, n); \
       back[i] = back[i] & ~BIT(n) }
#else
#define RETURN(i, n)
#endif

#define ON_SERVER(i, n) \
  READ(i, n) \
  RETURN(i, n) \
  CONFIRM_MENDS(i, n) \
  OBTAIN(i, n, 1) \
  OBTAIN(i, n, 2) \
  /* Reentered, or the repetition of an Obtain whose answer was lost. */ \
  :: d_step { state[i] == TRYING && !COUNTS(i, n) && ANSWERS(n) && SAME_OWNER(i, n) -> \
       printf("server %d: client %d re-enters with token %d\n", n, i, h_token[n]); \
       h_ids[n] = h_ids[n] | BIT(i); known[i].at[n] = h_token[n]; NOTE_PHASE(i, n) } \
  :: d_step { state[i] == TRYING && ANSWERS(n) && (h_ids[n] & BIT(i)) && MAY_CONFIRM(i, n) && known[i].at[n] != LARGEST(i) -> \
       printf("server %d: client %d confirms %d\n", n, i, LARGEST(i)); \
       CONFIRM(i, n); known[i].at[n] = CONFIRMED(i, n) } \
  :: d_step { state[i] == TRYING && ANSWERS(n) && (h_ids[n] & BIT(i)) && MAY_CONFIRM(i, n) && h_token[n] < LARGEST(i) -> \
       printf("server %d: client %d confirms %d, answer lost\n", n, i, LARGEST(i)); \
       CONFIRM(i, n) } \
  :: d_step { COUNTS(i, n) -> printf("client %d: its lease on server %d is over\n", i, n); \
       known[i].at[n] = 0; NOTE_END(i, n); \
       if :: state[i] == INSIDE && !MAJORITY(i) && !STAYS -> printf("client %d: leaves\n", i); quit(i) :: else fi }

#ifdef PAUSES
#define STAYS true
#else
#define STAYS false
#endif

#ifdef MUT_ONE_HANDLE_ENDS_THE_HOLD
#define RELEASE(i, n) if :: (h_ids[n] & BIT(i)) -> clear_hold(n) :: else fi
#else
#define RELEASE(i, n) h_ids[n] = h_ids[n] & ~BIT(i)
#endif
#ifdef MUT_ACKNOWLEDGE_FIRST
#define COUNTED(i, n) (COUNTS(i, n) && (h_ids[n] & BIT(i)) && state[i] != INSIDE)
#else
#define COUNTED(i, n) (COUNTS(i, n) && (h_ids[n] & BIT(i)))
#endif

/* Leave, give up or crash; the handles are nobody's from here on. */
inline quit(i) {
  state[i] = IDLE;
  known[i].at[0] = 0; known[i].at[1] = 0; known[i].at[2] = 0;
  RELEASE(i, 0); RELEASE(i, 1); RELEASE(i, 2)
#if LOSSES > 0
  ; fenceless[i] = 0; FORGET_READING(i)
#endif
#ifdef RETURNS
  ; token[i] = 0; back[i] = 0
#endif
#if defined(SHARED_OWNER) || defined(FORCED)
  ; base_token[i] = 0
#endif
}

/* Once inside it counts on those that confirmed its token; it may go on asking the others. */
#if defined(MUT_GRANT_OF_ANOTHER_TOKEN_COUNTS) || defined(MUT_NO_CONFIRMATION)
#define CONFIRMS(i, n) COUNTS(i, n)
#else
#define CONFIRMS(i, n) (TOKEN(i, n) == entered)
#endif
#ifdef RETURNS
#define ASK_STILL(i, n) back[i] = back[i] | BIT(n)
#else
#define ASK_STILL(i, n) skip
#endif
inline mark_live(i, n) {
  if
  :: COUNTS(i, n) && CONFIRMS(i, n) -> known[i].at[n] = 1
  :: COUNTS(i, n) && !CONFIRMS(i, n) -> known[i].at[n] = 0; ASK_STILL(i, n)
  :: else
  fi
}
#define CONFLICT(i, j) (state[j] == INSIDE && OWNER(i) != OWNER(j))

inline enter(i) {
  state[i] = INSIDE;
#if !defined(FORCED) && !defined(PAUSES)
  CHECK(S1_two_owners_inside, CONFLICT(i, 0) || CONFLICT(i, 1) || CONFLICT(i, 2));
#endif
  /* Entries of different owners carry growing tokens. Handles of one owner that were trying at the same time may carry
   * theirs in either order, so there, and with forced hand-over, entries count that were made before the attempt. */
#ifdef FORCED
  CHECK(S2_token_not_larger, LARGEST(i) < base_token[i]);
  CHECK(S2_token_of_two_owners, owner_of_token[LARGEST(i)] != 0 && owner_of_token[LARGEST(i)] != OWNER(i) + 1);
  owner_of_token[LARGEST(i)] = OWNER(i) + 1;
#elif defined(SHARED_OWNER) && !defined(STRICT_AMONG_HANDLES)
  CHECK(S2_token_not_larger, (last_owner == OWNER(i) + 1 -> LARGEST(i) < base_token[i] : LARGEST(i) <= last_token));
#else
  CHECK(S2_token_not_larger, (last_owner == OWNER(i) + 1 -> LARGEST(i) < last_token : LARGEST(i) <= last_token));
#endif
  if :: LARGEST(i) >= last_token -> last_token = LARGEST(i); last_owner = OWNER(i) + 1 :: else fi;
#ifdef RETURNS
  token[i] = LARGEST(i);
#endif
  entered = LARGEST(i);
  mark_live(i, 0); mark_live(i, 1); mark_live(i, 2); entered = 0
#if LOSSES > 0
  ; fenceless[i] = 0; FORGET_READING(i)
#endif
}

active [CLIENTS] proctype Client() {
  do
  :: d_step { state[_pid] == IDLE && _pid < ACTIVE -> printf("client %d: begins\n", _pid); state[_pid] = TRYING;
#if defined(SHARED_OWNER) || defined(FORCED)
       base_token[_pid] = last_token
#endif
     }
  ON_SERVER(_pid, 0)
  ON_SERVER(_pid, 1)
  ON_SERVER(_pid, 2)
  :: d_step { state[_pid] == TRYING && AGREED(_pid) ->
       printf("client %d: ENTERS with token %d\n", _pid, LARGEST(_pid)); enter(_pid) }
  :: d_step { state[_pid] != IDLE ->
       printf("client %d: leaves, gives up or crashes\n", _pid); quit(_pid) }
  od
}

#define N (_pid - CLIENTS)
#define INSIDE_WITHOUT(i, n) (state[i] == INSIDE && (n == 0 || COUNTS(i, 0)) && (n == 1 || COUNTS(i, 1)) && \
  (n == 2 || COUNTS(i, 2)))
#define MAX_KNOWN(i) MAX(known[i].at[0], MAX(known[i].at[1], known[i].at[2]))
#define LATE_OBTAIN(i) \
  :: d_step { h_owner[N] == 0 && ANSWERS(N) && fence[N] < MAX_TOKEN -> \
       printf("server %d: late Obtain of client %d\n", N, i); GRANT(i, N, fence[N] + 1, 0) }

active [SERVERS] proctype Server() {
  do
  :: d_step { h_owner[N] != 0 && !COUNTED(0, N) && !COUNTED(1, N) && !COUNTED(2, N) ->
       printf("server %d: the hold ends\n", N); clear_hold(N) }
#ifdef FORGETS
  :: d_step { h_owner[N] == 0 && fence[N] > 0 && RUNS(N) && !ANYBODY_COUNTS(N) &&
       (INSIDE_WITHOUT(0, N) || INSIDE_WITHOUT(1, N) || INSIDE_WITHOUT(2, N)) ->
       printf("server %d: forgets\n", N); fence[N] = 0 }
#endif
#ifndef NO_LATE_OBTAIN
  LATE_OBTAIN(0)
  LATE_OBTAIN(1)
#ifndef SHARED_OWNER
  LATE_OBTAIN(2)
#endif
#endif
#if LOSSES > 0
  /* The servers are alike, so the first loss may as well be that of the first, and so on. */
  :: d_step { RUNS(N) && losses < LOSSES && N <= losses && fence[N] > 0 ->
       printf("server %d: loses its data\n", N);
       losses++; clear_hold(N); fence[N] = 0; phase[N] = LOST }
  /* max_lease is over: no lease from before the loss is live any more. */
#ifdef MUT_INSTANT_RESTART
  :: d_step { phase[N] == LOST ->
#else
  :: d_step { phase[N] == LOST && !ANYBODY_COUNTS(N) ->
#endif
       printf("server %d: has waited for max_lease\n", N); phase[N] = FENCELESS }
  :: d_step { phase[N] == FENCELESS -> printf("server %d: its clock has passed every token\n", N);
       phase[N] = RUNNING;
       fence[N] = MAX(last_token, MAX(fence[0], MAX(fence[1], fence[2])));
       fence[N] = MAX(fence[N], MAX(MAX_KNOWN(0), MAX(MAX_KNOWN(1), MAX_KNOWN(2)))) }
#endif
  od
}
