package pipeline

import (
	"bufio"
	"encoding/gob"
	"fmt"
	"io"
	"os"

	"github.com/llmq/llmq/quant"
)

// waitingStats are statistics that wait in a temporary file, as saveStats has written them, so that others can be made where they were.
// Nil are none.
type waitingStats struct {
	file *os.File
}

// waitStats writes statistics to a file in dir ("": the system's), which is gone when the process ends.
func waitStats(s *quant.Stats, dir string) (*waitingStats, error) {
	file, err := os.CreateTemp(dir, ".llmq-sums-*")
	if err != nil {
		return nil, fmt.Errorf("sums over calibration tokens: %w", err)
	}
	os.Remove(file.Name()) // as in package states
	w := &waitingStats{file: file}
	b := bufio.NewWriterSize(file, waitBytes)
	if err = saveStats(b, s, statsPart{0, 1}, nil); err == nil {
		err = b.Flush()
	}
	if err != nil {
		defer w.close()
		return nil, fmt.Errorf("sums over calibration tokens, in %s: %w", file.Name(), err)
	}
	return w, nil
}

// waitBytes is how much of statistics that wait is written or read at a time.
const waitBytes = 1 << 20

// addTo adds the statistics to others of the same inputs, on and below the diagonal of H, and lets go of them.
func (w *waitingStats) addTo(s *quant.Stats) error {
	defer w.close()
	name := w.file.Name()
	_, err := w.file.Seek(0, io.SeekStart)
	r := &statsReader{r: bufio.NewReaderSize(w.file, waitBytes)}
	if err == nil {
		err = gob.NewDecoder(r.r).Decode(&r.statsHeader)
	}
	if err == nil {
		err = r.addTo(s)
	}
	if err != nil {
		return fmt.Errorf("sums over calibration tokens, in %s: %w", name, err)
	}
	return nil
}

func (w *waitingStats) close() {
	if w != nil && w.file != nil {
		w.file.Close()
		os.Remove(w.file.Name())
		w.file = nil
	}
}
