package mmap

// Filler brings the bytes of a file that is not all there, and may take them away again.
type Filler interface {
	// Fill brings bytes lo to hi of the file, and keeps them until Drop.
	Fill(lo, hi int64) error
	// Drop says that bytes [lo,hi) are not needed any more, and may go. Who needs them again has Fill bring them.
	Drop(parts [][2]int64) error
	// There says that bytes lo to hi have come, with all before them.
	There(lo, hi int64) bool
	// Gone says that bytes lo to hi have come, and that some of them have gone since.
	Gone(lo, hi int64) bool
}

// Need has b, a part of Data, be there, and stay until Drop. Of an ordinary map all is there.
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

// Place is the file and the bytes [lo,hi) of it that b is, a part of Data, if the file is one that comes in parts.
func (m *Map) Place(b []byte) (file string, lo, hi int64, ok bool) {
	if m.filler == nil || len(b) == 0 {
		return "", 0, 0, false
	}
	lo, hi = m.offsets(b)
	return m.path, lo, hi, true
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

// There says that b, a part of Data, has come, with all before it, if the file is one that comes in parts.
func (m *Map) There(b []byte) bool {
	if m.filler == nil || len(b) == 0 {
		return true
	}
	return m.filler.There(m.offsets(b))
}

// Gone says that b, a part of Data, has come, and some of it has gone since, if the file is one that comes in parts.
func (m *Map) Gone(b []byte) bool {
	if m.filler == nil || len(b) == 0 {
		return false
	}
	return m.filler.Gone(m.offsets(b))
}

// Lazy says whether Data is of a file that is not all there.
func (m *Map) Lazy() bool { return m.filler != nil }
