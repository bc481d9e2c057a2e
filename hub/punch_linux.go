package hub

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// punch gives the room of a file's bytes back, which are zeros then.
func punch(f *os.File, lo, hi int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, lo, hi-lo)
}

// systemStart names the time since the system has started: what a process had written before is there in it, be the process killed or not.
func systemStart() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(strings.Fields(string(b))) != 1 {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// Lazily says whether Client.Lazy is there.
const Lazily = true
