// A table of shares as a picture: one square a cell, red at 0, yellow at a half, green at 1, with axes and a legend.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace longspan::trainer {

struct HeatMap {
  std::string title;
  std::string column_label, row_label;                     // beside the axes
  std::vector<std::string> columns, rows;                  // headings
  std::vector<std::vector<std::optional<double>>> values;  // by row, 0 to 1; empty: not measured, drawn grey
};

// A whole SVG document that needs nothing else. Texts are escaped. Requires as many values as headings.
std::string DrawHeatMap(const HeatMap& map);

}  // namespace longspan::trainer
