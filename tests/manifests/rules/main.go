// Checks Prometheus rules and dashboards with Prometheus' own parsers, and prints the metrics that their expressions use:
// rules FILE.yml|FILE.json …
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	metrics := map[string]bool{}
	for _, file := range os.Args[1:] {
		expressions, err := read(file)
		for _, expression := range expressions {
			err = errors.Join(err, collect(expression, metrics))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", file, err)
			os.Exit(1)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		fmt.Println(name)
	}
}

// read returns the expressions of a file of rules or of a dashboard.
func read(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(file, ".json") {
		return dashboard(text)
	}
	groups, problems := rulefmt.Parse(text, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.Default())
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	var expressions []string
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			expressions = append(expressions, rule.Expr)
		}
	}
	return expressions, nil
}

// dashboard returns the expressions of all targets, with what Grafana fills in replaced by values.
func dashboard(text []byte) ([]string, error) {
	var content struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &content); err != nil {
		return nil, err
	}
	var expressions []string
	for _, panel := range content.Panels {
		if panel.Title == "" {
			return nil, errors.New("a panel has no title")
		}
		for _, target := range panel.Targets {
			expression := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			expressions = append(expressions, variable.ReplaceAllString(expression, "value"))
		}
	}
	return expressions, nil
}

var variable = regexp.MustCompile(`\$\w+`)

// collect adds the metrics that an expression selects.
func collect(expression string, metrics map[string]bool) error {
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return fmt.Errorf("%s: %w", expression, err)
	}
	for _, matchers := range parser.ExtractSelectors(parsed) {
		for _, matcher := range matchers {
			if matcher.Name == labels.MetricName {
				metrics[matcher.Value] = true
			}
		}
	}
	return nil
}
