// The loss curve as text. Pure.
#pragma once

#include <string>
#include <vector>

namespace longspan::client {

struct CurvePoint {
  double x = 0;
  double y = 0;  // a point that is not finite is left out
};

struct CurveShape {
  int width = 72;    // columns of the whole picture with its axis
  int height = 10;   // rows of the plot itself
  bool utf8 = true;  // Braille dots, 2 by 4 in a character; otherwise '*'
};

// Points in rising order of x. Columns that several points share show their range; gaps are bridged. Empty for fewer
// than two finite points.
std::string DrawCurve(const std::string& title, const std::string& x_name, const std::vector<CurvePoint>& points,
                      const CurveShape& shape);

}  // namespace longspan::client
