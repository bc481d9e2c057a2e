//go:build !unix

package kerneltest

import "time"

var start = time.Now()

// cpuTime is the time since the start: this system does not tell what the process used of it.
func cpuTime() time.Duration { return time.Since(start) }
