package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"golang.org/x/term"
)

const (
	outputTable = "table"
	outputJSON  = "json"
)

// table is text in aligned columns. The last column of a row is not padded.
type table struct {
	rows [][]string
}

func newTable(header ...string) *table {
	t := &table{}
	if len(header) > 0 {
		t.rows = append(t.rows, header)
	}
	return t
}

func (t *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = fmt.Sprint(cell)
	}
	t.rows = append(t.rows, row)
}

func (t *table) writeTo(w io.Writer) error {
	aligned := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range t.rows {
		if _, err := fmt.Fprintln(aligned, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return aligned.Flush()
}

// print writes a result to the standard output: as indented JSON, or as the
// tables with an empty line between them.
func (p *program) print(object any, tables ...*table) error {
	if p.output.value == outputJSON {
		encoder := json.NewEncoder(p.Stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return outputError(encoder.Encode(object))
	}
	for i, t := range tables {
		if i > 0 {
			if _, err := fmt.Fprintln(p.Stdout); err != nil {
				return outputError(err)
			}
		}
		if err := t.writeTo(p.Stdout); err != nil {
			return outputError(err)
		}
	}
	return nil
}

// isTerminal reports whether a person sits at the other end of a stream.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
