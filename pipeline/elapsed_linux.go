package pipeline

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// processorTime is how long the process's threads have run, and how long they have waited for a processor that others had: the second
// field of schedstat, 0 where the kernel does not say.
func processorTime() (ran, waited time.Duration) {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) == nil {
		ran = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	files, _ := filepath.Glob("/proc/self/task/*/schedstat")
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		if fields := strings.Fields(string(data)); len(fields) > 1 {
			ns, _ := strconv.ParseInt(fields[1], 10, 64)
			waited += time.Duration(ns)
		}
	}
	return ran, waited
}
