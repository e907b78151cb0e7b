// Prints Kubernetes objects as one JSON array.
//
//	chart CHART NAMESPACE VALUES   those of a Helm chart: `helm template`, as far as our chart asks for it
//	chart -                        those of a YAML stream
//
// The template engine, its functions (sprig) and the reading of YAML are those that Helm is built from.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/ghodss/yaml"
)

type object = map[string]interface{}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "-" {
		text, err := io.ReadAll(os.Stdin)
		must(err)
		show(objects(string(text)))
		return
	}
	if len(os.Args) != 4 {
		must(fmt.Errorf("usage: chart CHART NAMESPACE VALUES, or chart -"))
	}
	show(objects(render(os.Args[1], os.Args[2], os.Args[3])))
}

// Of all templates, in the order of their names.
func render(chart, namespace, values string) string {
	settings := read(filepath.Join(chart, "values.yaml"))
	over(settings, read(values))
	about := object{}
	for key, value := range read(filepath.Join(chart, "Chart.yaml")) {
		about[strings.ToUpper(key[:1])+key[1:]] = value
	}
	data := object{
		"Values":  settings,
		"Chart":   about,
		"Release": object{"Name": "vortex-agent", "Namespace": namespace, "Service": "Helm"},
	}
	all := template.New("chart").Option("missingkey=error")
	functions := sprig.TxtFuncMap()
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var text bytes.Buffer
		err := all.ExecuteTemplate(&text, name, data)
		return text.String(), err
	}
	all.Funcs(functions)
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	must(err)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		must(err)
		_, err = all.New(path).Parse(string(text))
		must(err)
	}
	var rendered bytes.Buffer
	for _, path := range paths {
		if filepath.Ext(path) == ".yaml" {
			rendered.WriteString("\n---\n")
			must(all.ExecuteTemplate(&rendered, path, data))
		}
	}
	return rendered.String()
}

func read(path string) object {
	text, err := os.ReadFile(path)
	must(err)
	values := object{}
	must(yaml.Unmarshal(text, &values))
	return values
}

// Values win over the chart's, map by map.
func over(settings, values object) {
	for key, value := range values {
		inner, isMap := value.(object)
		old, wasMap := settings[key].(object)
		if isMap && wasMap {
			over(old, inner)
		} else {
			settings[key] = value
		}
	}
}

func objects(text string) []object {
	found := []object{}
	for _, part := range strings.Split("\n"+text, "\n---\n") {
		one := object{}
		must(yaml.Unmarshal([]byte(part), &one))
		if len(one) > 0 {
			found = append(found, one)
		}
	}
	return found
}

func show(found []object) {
	text, err := json.Marshal(found)
	must(err)
	fmt.Println(string(text))
}
