package gguf

// Listing is what the directory of a GGUF file says, of whatever architecture and types; of a split model, what those of
// all parts say.
type Listing struct {
	Paths    []string // of the files, in order
	Metadata Metadata
	Tensors  []Listed // in file order
}

// Listed is a tensor of a listing.
type Listed struct {
	Name  string
	Type  string // ggml's name, or "type N" for a number that it does not know
	Shape []int  // as in ggml.Info
	// Bytes is the size of the data. Where the type's blocks are not known, it is what lies between this tensor and the
	// next, padding included.
	Bytes int64
}

// List reads what Open does, and takes tensors of types that cannot be decoded too.
func List(path string) (*Listing, error) {
	parts, err := openParts(path)
	if err != nil {
		return nil, err
	}
	l := newListing(parts)
	return l, closeParts(parts)
}

func newListing(parts []*part) *Listing {
	l := &Listing{Paths: paths(parts), Metadata: modelMetadata(parts)}
	for _, p := range parts {
		for i, t := range p.infos {
			l.Tensors = append(l.Tensors, Listed{t.Name, t.Type.Name, t.Shape, p.extents[i].hi - p.extents[i].lo})
		}
	}
	return l
}
