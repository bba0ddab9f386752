// A small pool of threads. After a job they spin for a while, so that the next one starts within a microsecond; then
// they sleep.
//
// A job waits only for the threads that joined it, not for a thread that is still waking up when all tasks are taken.
//
// Not OpenMP, because a second runtime would compete with torch's for the cores. One parallel_for runs at a time
// (others wait). Called inside a task, or in a process that was forked after the pool was made, it runs in the calling
// thread.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace shears {

class Pool {
 public:
  explicit Pool(int threads);  // the calling thread is one of them, so 1 starts no thread
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Call f(i) or f(i, thread) once for every i in [0, n), in any order, and return when all are done. f must not throw.
  template <class F>
  void parallel_for(int64_t n, F&& f) {
    auto call = [](void* context, int64_t i, int thread) {
      auto& function = *static_cast<std::remove_reference_t<F>*>(context);
      if constexpr (std::is_invocable_v<F, int64_t, int>)
        function(i, thread);
      else
        function(i);
    };
    run(n, call, const_cast<void*>(static_cast<const void*>(std::addressof(f))));
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  void run(int64_t n, Call call, void* context);
  void work(int thread);
  void take_tasks(int thread);
  bool wait_for_job(uint64_t seen, int thread);
  bool join(uint64_t state);
  void send_away(int thread);
  void let_back(int thread);

  struct Seat;  // the state of one worker

  std::vector<std::thread> workers_;
  std::unique_ptr<Seat[]> seats_;
  std::mutex turn_;  // one parallel_for at a time
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_;  // the job's number, whether it is over, its threads; see pool.cpp
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  int64_t tasks_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;
  int forks_;
};

}  // namespace shears
