#ifndef _GNU_SOURCE
#define _GNU_SOURCE  // sched_getcpu
#endif
#include "pool.h"

#include <chrono>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace shears {
namespace {

constexpr auto kSpin = std::chrono::microseconds(200);
constexpr uint64_t kMissed = 16;  // consecutive jobs that a worker did not join: it cannot run on its processor

// state_: the lowest bits count the threads in the job apart from the calling one; the next bit is set once all tasks
// are taken, and no thread may join any more; the other bits are the job's number. All in one word, so that a thread
// can join neither a job that is over nor another job than the one it saw.
constexpr uint64_t kThreads = (uint64_t{1} << 16) - 1, kOver = kThreads + 1, kJob = 2 * kOver;
constexpr uint64_t job_of(uint64_t state) { return state / kJob; }

std::atomic<int> forks{0};  // incremented in the child process
thread_local bool inside_task = false;

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
  (void)registered;
#endif
}

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("yield");
#else
  std::this_thread::yield();
#endif
}

// Return true once `ready()` holds, false if it does not within kSpin. Yields now and then, because a thread that was
// woken on the processor of the waiting thread could otherwise run only after the wait.
template <class F>
bool spin(F ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

// All fields but `joined` are written under sleep_.
struct Pool::Seat {
  bool asleep = false;
  std::atomic<bool> away{false};
  std::atomic<uint64_t> joined{0};  // the last job that the worker took part in
#if defined(__linux__)
  cpu_set_t allowed;  // its processors before it was sent away
#endif
};

// Exclude the calling thread's processor from a worker's. Linux was seen to leave a worker on that processor, waiting
// for the calling thread's work to end, for hundreds of milliseconds, although another processor was free. `let_back`
// allows all processors again once the worker runs on another.
void Pool::send_away(int thread) {
#if defined(__linux__)
  Seat& seat = seats_[thread - 1];
  if (seat.away) return;
  const auto worker = workers_[thread - 1].native_handle();
  const int here = sched_getcpu();
  if (here < 0 || pthread_getaffinity_np(worker, sizeof seat.allowed, &seat.allowed) || !CPU_ISSET(here, &seat.allowed) ||
      CPU_COUNT(&seat.allowed) < 2)
    return;
  cpu_set_t others = seat.allowed;
  CPU_CLR(here, &others);
  seat.away = pthread_setaffinity_np(worker, sizeof others, &others) == 0;
#else
  (void)thread;
#endif
}

void Pool::let_back(int thread) {
#if defined(__linux__)
  Seat& seat = seats_[thread - 1];
  if (!seat.away) return;
  std::lock_guard<std::mutex> lock(sleep_);
  pthread_setaffinity_np(pthread_self(), sizeof seat.allowed, &seat.allowed);
  seat.away = false;
#else
  (void)thread;
#endif
}

Pool::Pool(int threads) : seats_(new Seat[static_cast<size_t>(threads > 1 ? threads - 1 : 0)]), state_(kOver) {
  watch_forks();
  forks_ = forks.load();
  for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
  if (forks.load() != forks_) {  // the threads are the parent's: leak their handles, do not join them
    new std::vector<std::thread>(std::move(workers_));
    return;
  }
  {
    std::lock_guard<std::mutex> lock(sleep_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(int64_t n, Call call, void* context) {
  if (n <= 0) return;
  if (workers_.empty() || n == 1 || inside_task || forks.load() != forks_) {
    for (int64_t i = 0; i < n; ++i) call(context, i, 0);
    return;
  }
  std::lock_guard<std::mutex> turn(turn_);
  tasks_ = n, call_ = call, context_ = context;  // no thread reads these now: all have left the previous job
  next_.store(0);
  {
    std::lock_guard<std::mutex> lock(sleep_);
    state_.store((job_of(state_.load()) + 1) * kJob);
    for (int thread = 1; thread < size(); ++thread)
      if (seats_[thread - 1].asleep) send_away(thread);
  }
  wake_.notify_all();
  inside_task = true;
  take_tasks(0);
  inside_task = false;
  state_.fetch_or(kOver);
  while (!spin([this] { return (state_.load() & kThreads) == 0; })) std::this_thread::yield();
  const uint64_t job = job_of(state_.load());
  for (int thread = 1; thread < size(); ++thread)
    if ((job - seats_[thread - 1].joined.load()) % kMissed == kMissed - 1) {
      std::lock_guard<std::mutex> lock(sleep_);
      send_away(thread);
    }
}

void Pool::take_tasks(int thread) {
  for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) call_(context_, i, thread);
}

void Pool::work(int thread) {
  inside_task = true;
  for (uint64_t seen = 0; wait_for_job(seen, thread);) {
    const uint64_t state = state_.load();
    seen = job_of(state);
    let_back(thread);
    if (!join(state)) continue;
    seats_[thread - 1].joined.store(seen);
    take_tasks(thread);
    state_.fetch_sub(1);
  }
}

// Join the job of `state`; return false if it is over.
bool Pool::join(uint64_t state) {
  for (uint64_t now = state; job_of(now) == job_of(state) && !(now & kOver);)
    if (state_.compare_exchange_weak(now, now + 1)) return true;
  return false;
}

// Wait for a job after `seen`; return false if the pool closes.
bool Pool::wait_for_job(uint64_t seen, int thread) {
  auto ready = [&] { return job_of(state_.load()) != seen || stop_.load(); };
  if (!spin(ready)) {
    std::unique_lock<std::mutex> lock(sleep_);
    seats_[thread - 1].asleep = true;
    wake_.wait(lock, ready);
    seats_[thread - 1].asleep = false;
  }
  return !stop_.load();
}

}  // namespace shears
