// The ray ops as CUDA computes them, on a processor: 32 lanes take turns, each until it wants to know of the others.

#include <ucontext.h>

#include <cstdint>
#include <functional>
#include <vector>

#define AIRE_LAMBDA
#define AIRE_WARP static inline

constexpr int WIDTH = 32;

struct Warp {
    static constexpr int STACK = 1 << 16;
    ucontext_t outside, lanes[WIDTH];
    std::vector<char> stacks = std::vector<char>(WIDTH * STACK);
    std::function<void(int)> work;
    // Of this exchange and of the one before, which a lane that comes late still has to read.
    uint32_t told[2][WIDTH];
    int asked[2][WIDTH];
    bool differ = false;
    int lane = 0, turn[WIDTH], exchanges[WIDTH];
};

static Warp warp;

static void body() {
    int lane = warp.lane;
    warp.work(lane);
    warp.turn[lane] = -1;
}

// Runs the lanes to their end; whether they told each other something equally often. Of the same kind: differ.
static bool run_lanes() {
    for (int lane = 0; lane < WIDTH; lane++) {
        getcontext(&warp.lanes[lane]);
        warp.lanes[lane].uc_stack.ss_sp = warp.stacks.data() + lane * Warp::STACK;
        warp.lanes[lane].uc_stack.ss_size = Warp::STACK;
        warp.lanes[lane].uc_link = &warp.outside;
        warp.turn[lane] = warp.exchanges[lane] = 0;
        makecontext(&warp.lanes[lane], body, 0);
    }
    while (true) {
        int going = 0;
        for (warp.lane = 0; warp.lane < WIDTH; warp.lane++) {
            if (warp.turn[warp.lane] < 0) continue;
            swapcontext(&warp.outside, &warp.lanes[warp.lane]);
            going += warp.turn[warp.lane] >= 0;
        }
        if (going == 0) break;
        if (going < WIDTH) return false;  // on a GPU they would wait for ever
    }
    return true;
}

// What all lanes tell, of 32 bits each.
static const uint32_t* exchange(int question, uint32_t mine) {
    int lane = warp.lane, turn = warp.exchanges[lane]++ % 2;
    warp.told[turn][lane] = mine;
    warp.asked[turn][lane] = question;
    swapcontext(&warp.lanes[lane], &warp.outside);
    for (int other : warp.asked[turn]) warp.differ |= other != question;
    return warp.told[turn];
}

AIRE_WARP uint32_t votes_for(bool vote) {
    const uint32_t* told = exchange(1, vote);
    uint32_t votes = 0;
    for (int lane = 0; lane < WIDTH; lane++) votes |= told[lane] << lane;
    return votes;
}
AIRE_WARP float from_lane(float x, int lane) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    const uint32_t* told = exchange(2, bits);
    __builtin_memcpy(&x, told + lane, 4);
    return x;
}
AIRE_WARP int ones(uint32_t bits) { return __builtin_popcount(bits); }

template <class What>
static int for_each(int64_t, int64_t count, What what) {
    for (int64_t n = 0; n < count; n++) what(n);
    return 0;
}

template <class What>
static int for_each_warp(int64_t, int64_t count, What what) {
    for (int64_t n = 0; n < count; n++) {
        warp.work = [&](int lane) { what(n, lane); };
        if (!run_lanes() || warp.differ) return 1;
    }
    return 0;
}

#include "ray_marching.h"
#include "rays_by_warps.h"

extern "C" const char* aire_error(int) { return "lanes went different ways"; }
