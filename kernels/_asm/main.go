// Command _asm writes the assembly of the packages below kernels: one .s file and one file of Go declarations for each topic.
// It is a module of its own so that the generator's dependencies are not the project's.
//
//	go run . -dir ..
package main

import (
	"flag"
	"log"
	"os"
	"path/filepath"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
)

// topics are the files to write, NAME_amd64.s and NAME_amd64.go, each in its room; NAME.go here is what writes them.
var topics = []struct {
	room, name string
	generate   func(*gen)
}{
	{"internal/pack", "pack", pack},
	{"internal/tile", "tile", tile},
	{"internal/tile", "amx", amx},
	{"vector", "vector", vector},
	{"unpack", "unpack", unpack},
	{"unpack", "levels", levels},
	{"gemm", "few", few},
	{"gemm", "few_bf16", fewBF16},
	{"encode", "half", half},
	{"encode", "blocks", blocks},
	{"elementwise", "elementwise", elementwise},
	{"elementwise", "rope", rope},
	{"scan", "conv", conv},
	{"i8", "i8", i8},
	{"i8", "i8_amx", i8AMX},
	{"q8", "q8", q8},
	{"q8", "q8_amx", q8AMX},
	{"columns", "columns", columns},
	{"codebook", "codebook", codebook},
	{"search", "search", search},
	{"search", "measure", measure},
	{"search", "moves", moves},
	{"peak", "peak", peak},
}

// gen is an avo context with this project's shorthands.
type gen struct{ *build.Context }

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "..", "folder of package kernels")
	flag.Parse()
	for _, t := range topics {
		if err := write(filepath.Join(*dir, t.room), t.name, t.generate); err != nil {
			log.Fatalf("%s: %v", t.name, err)
		}
	}
	dotProducts, dotDeclarations, _ := dots()
	products, declarations, _ := bfmmla()
	packing, packingDeclarations := bfmmlaPacking()
	for _, t := range []struct{ room, name, assembly, declarations string }{
		{"q8", "dots", dotProducts, dotDeclarations},
		{"internal/tile", "bfmmla", products, declarations},
		{"internal/pack", "bfmmla", packing, packingDeclarations},
	} {
		if err := writeARM64(filepath.Join(*dir, t.room), t.name, t.assembly, t.declarations); err != nil {
			log.Fatal(err)
		}
	}
}

func write(dir, name string, generate func(*gen)) error {
	g := &gen{build.NewContext()}
	g.ConstraintExpr("!purego")
	generate(g)
	file, err := g.Result()
	if err != nil {
		return err
	}
	if err := pass.Compile.Execute(file); err != nil {
		return err
	}
	cfg := printer.Config{Name: "kernels/_asm", Pkg: filepath.Base(dir)}
	if err := render(filepath.Join(dir, name+"_amd64.s"), file, printer.NewGoAsm(cfg)); err != nil {
		return err
	}
	return render(filepath.Join(dir, name+"_amd64.go"), file, printer.NewStubs(cfg))
}

func render(path string, file *ir.File, p printer.Printer) error {
	text, err := p.Print(file)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}
