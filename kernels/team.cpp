// The threads all CPU kernels share. A call hands out numbered tasks; the caller works on them too.
//
// Unlike an OpenMP region, a call waits only for tasks that somebody has begun, never for a thread
// to arrive: where a core is taken by another process, the caller does that thread's share itself
// instead of standing still for a scheduler slice. For the same reason a forked child, which has no
// workers, just works alone. Idle workers look for work for some 100 us, a few times the gap
// between the kernels of a step, then sleep.
//
// One word says what there is to do: the number of the call in the upper half, the tasks nobody has
// begun in the lower. A worker that takes a task by compare-and-swap therefore knows that the body
// it read belongs to that call: the call cannot end, and its fields cannot change, before its tasks
// are done.

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace {

typedef void (*Body)(void* context, int64_t task);

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

struct Team {
    static constexpr uint64_t TASKS = 0xffffffff;
    static constexpr int LOOKS = 4000;   // of an idle worker before it sleeps
    static constexpr int POLITE = 2000;  // looks of a waiting caller before it gives its core away

    alignas(64) std::atomic<uint64_t> open{0};
    alignas(64) std::atomic<int64_t> done{0};
    alignas(64) std::atomic<Body> body{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<int64_t> tasks{0}, welcome{0};  // workers numbered below `welcome` take part
    std::atomic<int64_t> asleep{0};
    std::mutex calling, sleeping;
    std::condition_variable wake;
    int64_t workers = 0;

    // Takes and does one task; false if there is none.
    bool work() {
        uint64_t now = open.load(std::memory_order_acquire);
        while (now & TASKS) {
            Body run = body.load(std::memory_order_relaxed);
            void* with = context.load(std::memory_order_relaxed);
            int64_t task = tasks.load(std::memory_order_relaxed) - int64_t(now & TASKS);
            if (open.compare_exchange_weak(now, now - 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
                run(with, task);
                done.fetch_add(1, std::memory_order_release);
                return true;
            }
        }
        return false;
    }

    void serve(int64_t number) {
        auto wanted = [&] {
            return (open.load() & TASKS) && number < welcome.load(std::memory_order_relaxed);
        };
        for (int looks = 0;;) {
            if (wanted()) {
                if (work()) looks = 0;
            } else if (++looks < LOOKS) {
                relax();
            } else {
                std::unique_lock<std::mutex> lock(sleeping);
                asleep.fetch_add(1);
                wake.wait(lock, wanted);
                asleep.fetch_sub(1);
                looks = 0;
            }
        }
    }

    void run(int64_t threads, int64_t count, Body what, void* with) {
        std::unique_lock<std::mutex> mine(calling, std::try_to_lock);
        if (threads < 2 || count < 2 || count > int64_t(TASKS) || !mine) {
            for (int64_t task = 0; task < count; task++) what(with, task);
            return;
        }
        for (; workers < threads - 1; workers++)
            std::thread([this, number = workers] { serve(number); }).detach();
        body.store(what, std::memory_order_relaxed);
        context.store(with, std::memory_order_relaxed);
        tasks.store(count, std::memory_order_relaxed);
        welcome.store(threads - 1, std::memory_order_relaxed);
        done.store(0, std::memory_order_relaxed);
        open.store(((open.load() >> 32) + 1) << 32 | uint64_t(count));
        if (asleep.load()) {
            std::lock_guard<std::mutex> lock(sleeping);
            wake.notify_all();
        }
        while (work()) {
        }
        for (int looks = 0; done.load(std::memory_order_acquire) < count; looks++)
            looks < POLITE ? relax() : void(sched_yield());
    }
};

Team& team() {
    static Team* one = new Team;  // never destroyed: detached workers may outlive main
    return *one;
}

}  // namespace

extern "C" void team_run(int64_t threads, int64_t tasks, Body body, void* context) {
    team().run(threads, tasks, body, context);
}
