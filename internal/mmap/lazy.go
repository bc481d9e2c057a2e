package mmap

// Filler brings the bytes of a file that is not all there, and may take them away again.
type Filler interface {
	// Fill brings bytes lo to hi of the file, and keeps them until Free.
	Fill(lo, hi int64) error
	// Free says that bytes lo to hi are not needed for now.
	Free(lo, hi int64)
}

// Need has b, a part of Data, be there, and stay until Release. Of an ordinary map all is there.
func (m *Map) Need(b []byte) error {
	if m.filler == nil || len(b) == 0 {
		return nil
	}
	lo, hi := m.offsets(b)
	if err := m.filler.Fill(lo, hi); err != nil {
		return err
	}
	return m.allow(lo, hi)
}

// Lazy says whether Data is of a file that is not all there.
func (m *Map) Lazy() bool { return m.filler != nil }
