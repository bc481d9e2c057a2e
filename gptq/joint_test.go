package gptq

import (
	"testing"
	"testing/synctest"

	"github.com/llmq/llmq/tensor"
)

// TestJointPanic: a member that panics while it quantizes for all leaves nobody waiting.
func TestJointPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which says so if somebody waits for ever
		j := &joint{members: 2} // has no Factor to quantize with
		waited := make(chan error, 1)
		go func() {
			_, _, _, err := j.quantize(tensor.New(1, 1))
			waited <- err
		}()
		synctest.Wait()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			j.quantize(tensor.New(1, 1))
		}()
		if err := <-waited; err == nil {
			t.Error("the other member knows of no error")
		}
	})
}
