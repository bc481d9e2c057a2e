package mmap

// Filler brings the bytes of a file that is not all there, and may take them away again.
type Filler interface {
	// Fill brings bytes lo to hi of the file, and keeps them until Free.
	Fill(lo, hi int64) error
	// Free says that bytes lo to hi are not needed for now.
	Free(lo, hi int64)
	// Drop says that bytes [lo,hi) are not needed any more, and may go. Who needs them again has Fill bring them.
	Drop(parts [][2]int64) error
	// Checked says that all of the file has been there, and was what it should be.
	Checked() bool
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

// Drop says that nobody will read parts of Data again: those of a file that is not all there may go.
func (m *Map) Drop(parts ...[]byte) error {
	if m.filler == nil {
		return nil
	}
	var spans [][2]int64
	for _, b := range parts {
		if lo, hi := m.offsets(b); lo < hi {
			spans = append(spans, [2]int64{lo, hi})
		}
	}
	return m.filler.Drop(spans)
}

// Checked says that all of the file is there, or was, and is known to be what it should be, if it is one that comes in parts.
func (m *Map) Checked() bool { return m.filler == nil || m.filler.Checked() }

// Lazy says whether Data is of a file that is not all there.
func (m *Map) Lazy() bool { return m.filler != nil }
