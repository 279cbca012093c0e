export { createElement, useEffect, useState } from "react";
