// Command _asm writes the assembly of package kernels: one .s file and one file of Go declarations for each topic.
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

// topics are the files to write: NAME_amd64.s and NAME_amd64.go.
var topics = []struct {
	name     string
	generate func(*gen)
}{
	{"gemm", gemm},
	{"pack", pack},
	{"vector", vector},
	{"unpack", unpack},
	{"few", few},
	{"few_bf16", fewBF16},
	{"half", half},
	{"levels", levels},
	{"search", scaleSearch},
	{"blocks", blocks},
	{"lanes", columns},
	{"elementwise", elementwise},
	{"rope", rope},
	{"int8", signedBytes},
	{"q8", q8},
	{"q8_levels", q8Levels},
	{"peak", peak},
}

// gen is an avo context with this project's shorthands.
type gen struct{ *build.Context }

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "..", "folder of the kernels package")
	flag.Parse()
	for _, t := range topics {
		if err := write(*dir, t.name, t.generate); err != nil {
			log.Fatalf("%s: %v", t.name, err)
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
	cfg := printer.Config{Name: "kernels/_asm", Pkg: "kernels"}
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
