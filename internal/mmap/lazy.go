package mmap

// Filler brings the bytes of a file that is not all there, and may take them away again.
type Filler interface {
	// Fill brings bytes lo to hi of the file, and keeps them until Free.
	Fill(lo, hi int64) error
	// Free says that bytes lo to hi are not needed for now.
	Free(lo, hi int64)
	// Keep says that bytes lo to hi will be needed again, and are to stay when they have come.
	Keep(lo, hi int64)
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

// Keep has b stay when it has come, Release or not, if Data is of a file that is not all there.
func (m *Map) Keep(b []byte) {
	if m.filler != nil && len(b) > 0 {
		m.filler.Keep(m.offsets(b))
	}
}

// Lazy says whether Data is of a file that is not all there.
func (m *Map) Lazy() bool { return m.filler != nil }
