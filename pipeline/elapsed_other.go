//go:build !linux

package pipeline

import "time"

// processorTime is not known here.
func processorTime() (ran, waited time.Duration) { return 0, 0 }
